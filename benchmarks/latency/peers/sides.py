"""The systems that are compared, and the rows of the comparison."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.latency.bundles import bundle
from benchmarks.latency.peers import models
from benchmarks.latency.peers.environments import PACKAGES, ensure_environment
from benchmarks.latency.shapes import SMOLLM2


@dataclass(frozen=True)
class Side:
    """One system on one form of the weights.

    Attributes:
        label: for people.
        system: a module beside this one, run as a process; in an environment of its own where `PACKAGES` has one.
        files: makes what it reads, given the model's name and the threads; raises `RowError`.
        exact: whether it computes with the very same weights in fp32, so that its tokens must be ours.
    """

    label: str
    system: str
    files: Callable[[str, int], dict[str, Path]]
    exact: bool = False

    def python(self) -> Path:
        """The interpreter that runs it; makes the environment."""
        return ensure_environment(self.system) if self.system in PACKAGES else Path(sys.executable)

    @property
    def module(self) -> str:
        """What the interpreter runs."""
        return f"{__package__}.{self.system}"


def _ours(topology: str, precision: str, *, all_4_bits: bool = False) -> Side:
    def files(model: str, _: int) -> dict[str, Path]:
        return {"bundle": bundle(model, topology=topology, precision=precision, all_4_bits=all_4_bits)}

    label = f"PAD-RT {topology}, {precision}" + (" everywhere" if all_4_bits else "")
    return Side(label, "ours", files, precision == "fp32")


def _two(files: Callable[[str, str, int], Path]) -> Callable[[str, int], dict[str, Path]]:
    return lambda model, threads: {which: files(model, which, threads) for which in ("base", "persrm")}


def _genai(precision: str) -> Side:
    files = _two(lambda model, which, threads: models.genai(model, which, precision, threads=threads))
    return Side(f"ONNX Runtime GenAI, {precision}", "genai", files, precision == "fp32")


def _llamacpp(precision: str, label: str) -> Side:
    files = _two(lambda model, which, _: models.gguf(model, which, precision))
    return Side(f"llama.cpp, {label}", "llamacpp", files, precision == "fp32")


SIDES = {
    **{f"{topology}-{bits}": _ours(topology, bits) for topology in ("shared", "pair") for bits in ("fp32", "int4")},
    "shared-int4-all": _ours("shared", "int4", all_4_bits=True),
    "transformers-fp32": Side(
        "transformers, fp32", "transformers", _two(lambda model, which, _: models.huggingface(model, which)), exact=True
    ),
    "genai-fp32": _genai("fp32"),
    "genai-int4": _genai("int4"),
    "optimum-fp32": Side(
        "Optimum, fp32", "optimum", _two(lambda model, which, _: models.optimum(model, which)), exact=True
    ),
    "llamacpp-fp32": _llamacpp("fp32", "fp32"),
    "llamacpp-q4": _llamacpp("q4", "Q4_1"),
}


@dataclass(frozen=True)
class PeerRow:
    """One system and ours, which take turns on one model.

    Attributes:
        model: of `SHAPES`.
        side: the system.
        ours: our sides; the first is held against its tokens.
    """

    model: str
    side: str
    ours: tuple[str, ...]


_ON_SMOLLM2 = {
    "pair-fp32": ("shared-fp32",),
    "pair-int4": ("shared-int4",),
    "transformers-fp32": ("shared-fp32", "shared-int4"),
    "optimum-fp32": ("shared-fp32", "shared-int4"),
    "genai-fp32": ("shared-fp32",),
    "genai-int4": ("shared-int4", "shared-int4-all"),
    "llamacpp-fp32": ("shared-fp32",),
    "llamacpp-q4": ("shared-int4",),
}
_ON_SHAPES = {
    "qwen2.5-0.5b": {name: _ON_SMOLLM2[name] for name in ("transformers-fp32", "optimum-fp32", "genai-int4")},
    "llama-3.2-1b": {"transformers-fp32": ("shared-int4",), "genai-int4": _ON_SMOLLM2["genai-int4"]},
}
ROWS = {side: PeerRow(SMOLLM2, side, ours) for side, ours in _ON_SMOLLM2.items()}
ROWS |= {
    f"{model}-{side}": PeerRow(model, side, ours) for model, rows in _ON_SHAPES.items() for side, ours in rows.items()
}

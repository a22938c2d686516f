"""The systems that are compared, and the rows of the comparison."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peer_models
from bundles import bundle
from peer_environments import ensure_environment
from shapes import SMOLLM2, checkpoint


@dataclass(frozen=True)
class Side:
    """One system on one form of the weights.

    Attributes:
        label: for people.
        script: its process, beside this file.
        environment: of `peer_environments`, or None for this one.
        files: makes what it reads, given the model's name and the threads; raises `PeerError`.
        exact: whether it computes with the very same weights in fp32, so that its tokens must be ours.
    """

    label: str
    script: str
    environment: str | None
    files: Callable[[str, int], dict[str, Path]]
    exact: bool = False

    def python(self) -> Path:
        """The interpreter that runs it; makes the environment."""
        return ensure_environment(self.environment) if self.environment else Path(sys.executable)


def _ours(topology: str, precision: str, *, all_4_bits: bool = False) -> Side:
    def files(model: str, _: int) -> dict[str, Path]:
        base, adapter = checkpoint(model)
        made = bundle(model, base, adapter, topology=topology, precision=precision, all_4_bits=all_4_bits)
        return {"bundle": made}

    label = f"PAD-RT {topology}, {precision}" + (" everywhere" if all_4_bits else "")
    return Side(label, "peer_ours.py", None, files, precision == "fp32")


def _two(files: Callable[[str, str, int], Path]) -> Callable[[str, int], dict[str, Path]]:
    return lambda model, threads: {which: files(model, which, threads) for which in ("base", "persrm")}


def _genai(precision: str) -> Side:
    files = _two(lambda model, which, threads: peer_models.genai(model, which, precision, threads=threads))
    return Side(f"ONNX Runtime GenAI, {precision}", "peer_genai.py", "genai", files, precision == "fp32")


def _llamacpp(precision: str, label: str) -> Side:
    files = _two(lambda model, which, _: peer_models.gguf(model, which, precision))
    return Side(f"llama.cpp, {label}", "peer_llamacpp.py", "llamacpp", files, precision == "fp32")


SIDES = {
    **{f"{topology}-{bits}": _ours(topology, bits) for topology in ("shared", "pair") for bits in ("fp32", "int4")},
    "shared-int4-all": _ours("shared", "int4", all_4_bits=True),
    "transformers-fp32": Side(
        "transformers, fp32",
        "peer_transformers.py",
        None,
        _two(lambda model, which, _: peer_models.huggingface(model, which)),
        exact=True,
    ),
    "genai-fp32": _genai("fp32"),
    "genai-int4": _genai("int4"),
    "optimum-fp32": Side(
        "Optimum, fp32",
        "peer_optimum.py",
        "optimum",
        _two(lambda model, which, _: peer_models.optimum(model, which)),
        exact=True,
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

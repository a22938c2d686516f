"""The torch side of every comparison: transformers and PEFT run the rows of a plan.

Weights are streamed: a module's are read when it runs and dropped when it is done, so that a model larger than memory
can be compared. Rows of one kind therefore run together, one pass for all of them. A folder is read by safetensors
under transformers' own parameter names, past our reader, which is part of what is verified; a GGUF file by our reader,
because transformers reads those with losses (head_dim, biases, Llama 3's rotary scaling).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from pad_export.checkpoint import Checkpoint
from pad_export.persrm.persrm import FeatureHead
from pad_export.plan import Plan
from pad_runtime.errors import CheckpointError


@dataclass(frozen=True)
class RowInput:
    """What one row reads: its token ids, how many of the last positions to score, and its features' weights."""

    ids: tuple[int, ...]
    num_scored: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class RowOutput:
    """One row's forward pass, float32.

    Attributes:
        logits: [num_scored, vocab], after the feature head where the row has one.
        cache: of each layer the first position that is kept (a sliding window drops the oldest), and key and value from
            there on, [kv_heads, n, head_dim].
    """

    logits: torch.Tensor
    cache: list[tuple[int, torch.Tensor, torch.Tensor]]


class RowModel:
    """The torch model behind one kind of row."""

    def __init__(self, model: Any, head: FeatureHead | None) -> None:
        self._model, self._head = model, head

    @torch.no_grad()
    def forward(self, rows: Sequence[RowInput]) -> list[RowOutput]:
        """Run rows of any lengths, right-padded: attention is causal, so what follows a row changes nothing in it."""
        longest = max(len(row.ids) for row in rows)
        padded = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])
        output = self._model.model(input_ids=padded, use_cache=True)
        hidden = [
            output.last_hidden_state[index, len(row.ids) - row.num_scored : len(row.ids)]
            for index, row in enumerate(rows)
        ]  # each [num_scored, hidden]
        sizes = [row.num_scored for row in rows]
        logits: tuple[torch.Tensor, ...]
        if self._head is None:
            logits = torch.split(self._logits(torch.cat(hidden)), sizes)
        else:
            logits = tuple(self._features(hidden, rows))
        return [
            RowOutput(
                row_logits, [_kept(layer, index, len(row.ids), longest) for layer in output.past_key_values.layers]
            )
            for index, (row, row_logits) in enumerate(zip(rows, logits, strict=True))
        ]

    def _features(self, hidden: list[torch.Tensor], rows: Sequence[RowInput]) -> list[torch.Tensor]:
        """sum_i w_i cap(lm_head(W_i h + b_i)), each row by its own weights."""
        assert self._head is not None
        sizes = [len(part) for part in hidden]
        phi = [
            torch.split(self._logits(torch.nn.functional.linear(torch.cat(hidden), matrix, bias)), sizes)
            for matrix, bias in zip(self._head.weight, self._head.bias, strict=True)
        ]
        return [
            torch.stack([weight * feature[index] for weight, feature in zip(row.weights, phi, strict=True)]).sum(0)
            for index, row in enumerate(rows)
        ]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model.lm_head(hidden)
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits


class TrunkModel:
    """A trunk's torch model, for all kinds of rows that run on it."""

    def __init__(self, plan: Plan, trunk: int) -> None:
        self._plan = plan
        self._model = load_model(plan.trunks[trunk].checkpoint)

    @contextmanager
    def row_model(self, persrm: int | None) -> Iterator[RowModel]:
        """The trunk's own weights, under a PersRM's adapter and head where the row wears one (index, or None)."""
        source = self._plan.sources[persrm] if persrm is not None and self._plan.sources else None
        if source is None or source.adapter is None:
            yield RowModel(self._model, source.head if source else None)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT's use of transformers: nothing a user could mend
            wrapped = PeftModel.from_pretrained(self._model, source.adapter.path)
        yield RowModel(wrapped.get_base_model(), source.head)
        self._model = wrapped.unload()


def load_model(checkpoint: Checkpoint) -> Any:
    """A checkpoint as a transformers model in float32 on the CPU, its weights read only while they are in use.

    Raises:
        CheckpointError: transformers' model has a parameter that the checkpoint lacks.
    """
    with no_init_weights():  # memory that is never written is never taken
        model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32)
    source = _GgufSource(checkpoint) if checkpoint.path.is_file() else _FolderSource(checkpoint.path)
    for path, module in model.named_modules():
        names = {parameter: f"{path}.{name}" for name, parameter in module.named_parameters(recurse=False)}
        if names:
            _stream(module, names, source)
    return model.eval()


class _FolderSource:
    """Tensors of a Hugging Face folder, by the name of a parameter."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        for path in _weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def __call__(self, parameter: str) -> torch.Tensor | None:
        inner = parameter.removeprefix("model.")
        wrapped = f"language_model.{parameter}", f"model.language_model.{inner}"  # text models out of larger ones
        for name in (*wrapped, parameter, inner):
            if name in self._files:
                with safe_open(self._files[name], framework="pt") as file:
                    tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        return None


class _GgufSource:
    """Tensors of a GGUF file, by the name of a parameter."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __call__(self, parameter: str) -> torch.Tensor | None:
        return self._checkpoint.tensor(parameter) if parameter in self._checkpoint.names else None


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():  # a model saved anew over a sharded one leaves the old index beside it
        return [single]
    return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _stream(
    module: torch.nn.Module, names: dict[torch.nn.Parameter, str], source: Callable[[str], torch.Tensor | None]
) -> None:
    """Have a module read its parameters before it runs and drop them after."""

    def read(*_: Any) -> None:
        for parameter, name in names.items():
            parameter.data = _find(name, parameter.shape, source).float()

    def drop(*_: Any) -> None:
        for parameter in names:
            parameter.data = torch.zeros(1).expand(parameter.shape)  # the shape that PEFT looks at, and no memory

    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop)
    drop()


def _find(name: str, shape: torch.Size, source: Callable[[str], torch.Tensor | None]) -> torch.Tensor:
    """A parameter's value: a head that is not stored is the embedding's, and a bias that is not stored is zero."""
    tensor = source(name)
    if tensor is None and name == "lm_head.weight":
        tensor = source("model.embed_tokens.weight")
    if tensor is None and name.endswith(".bias"):
        tensor = torch.zeros(shape)
    if tensor is None:
        raise CheckpointError(f"the checkpoint has no tensor {name}", expected="every parameter of transformers' model")
    return tensor


def _kept(layer: Any, row: int, length: int, longest: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """What the cache of one layer keeps of a row that is `length` of `longest` tokens long."""
    first = longest - layer.keys.shape[2]
    end = max(0, length - first)
    return first, layer.keys[row, :, :end], layer.values[row, :, :end]

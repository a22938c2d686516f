"""A checkpoint: the configuration, weights and tokenizer of a base model or of a merged PersRM."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from transformers import AutoConfig, PretrainedConfig

from pad_export.read.gguf.file import open_gguf
from pad_export.read.json_file import read_object
from pad_export.read.model_class import check_architectures
from pad_export.read.safetensors_file import open_safetensors
from pad_export.read.spec import MAX_LAYERS
from pad_export.read.tensor_names import EMBEDDINGS, LM_HEAD, find_text_model
from pad_export.read.tokenizer.checkpoint_tokenizer import (
    CheckpointTokenizer,
    TokenizerSettings,
    has_tokenizer,
    load_folder_tokenizer,
    load_gguf_tokenizer,
)
from pad_export.read.tokenizer.turn_end import find_turn_end
from pad_export.weights.blocks import Blocks
from pad_runtime.errors import CheckpointError


class Weights(Protocol):
    """Stored tensors, read one at a time."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each stored tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor by its stored name."""

    def read_blocks(self, name: str, bits: int) -> Blocks | None:
        """Return a matrix in the blocks that it is stored in, where `bits` bits can say the same; else None."""


OpenWeights: TypeAlias = Callable[[Path], Weights]  # of a Hugging Face folder


class Checkpoint:
    """A causal language model on disk. Only names and shapes are in memory; tensors are read when asked for.

    Attributes:
        path: the folder or GGUF file.
        config: transformers' configuration of the text model.
        model_type: its `model_type`, such as "llama".
        names: Hugging Face names of the tensors; each begins with `model.` or is `lm_head.weight`.
        nbytes: size of the weights on disk, in bytes.
        called: names that the model gives itself, in GGUF metadata or config.json's `_name_or_path`.
    """

    def __init__(
        self,
        path: Path,
        config: PretrainedConfig,
        weights: Weights,
        *,
        load_tokenizer: Callable[[], CheckpointTokenizer],
        stored_eos: tuple[int, ...],
        called: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.called = called
        self.config = config
        self.model_type: str = config.model_type
        self.nbytes = weights.nbytes
        self._weights = weights
        self._load_tokenizer = load_tokenizer
        self._stored_eos = stored_eos
        self._stored_names = find_text_model(path, config, weights.shapes)
        self.names = frozenset(self._stored_names)
        if LM_HEAD not in self.names and not config.tie_word_embeddings:
            raise CheckpointError(
                f"{path} has no {LM_HEAD}, and its embeddings are not tied",
                expected="a causal language model, with the lm_head it was trained with",
                hint="give the causal language model that it was taken from: loaded as one, it has a random lm_head",
            )

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor: in its stored dtype from safetensors, dequantised to float32 from GGUF.

        Raises:
            CheckpointError: no tensor of that name, or one that cannot be read.
        """
        return self._weights.read(self._stored(name))

    def blocks(self, name: str, bits: int) -> Blocks | None:
        """Return a matrix in its stored blocks, or None if `bits` bits cannot hold them without loss."""
        return self._weights.read_blocks(self._stored(name), bits)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it; errors are those of `tensor`."""
        return self._weights.shapes[self._stored(name)]

    @cached_property
    def tied(self) -> bool:
        """Whether the output projection is the embedding matrix.

        As in transformers, a stored lm_head that differs from the embedding is used, whatever the configuration says.
        """
        if LM_HEAD not in self.names:
            return True
        return bool(self.config.tie_word_embeddings) and torch.equal(self.tensor(LM_HEAD), self.tensor(EMBEDDINGS))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a generation and has logits: from the configurations, the tokenizer and the chat template.

        Raises:
            CheckpointError: a chat template that is no Jinja, or does not end.
        """
        closing = self.turn_end
        return self._named_eos if closing is None else tuple(dict.fromkeys([*self._named_eos, closing]))

    @property
    def unnamed_eos(self) -> int | None:
        """The token with which the chat template closes the assistant's turn, if no other file names it as an end."""
        return None if self.turn_end in self._named_eos else self.turn_end

    @cached_property
    def turn_end(self) -> int | None:
        """The token with which the chat template closes the assistant's turn; None if there is no such token."""
        info = self.tokenizer.info
        if info.chat_template is None:
            return None
        named = {"bos_token": info.bos_token, "eos_token": info.eos_token}
        special_tokens = {name: token for name, token in named.items() if token is not None}
        found = find_turn_end(info.chat_template, self.tokenizer.backend, special_tokens)
        return found if found is not None and found < self.config.vocab_size else None

    @cached_property
    def _named_eos(self) -> tuple[int, ...]:
        ids = list(self._stored_eos)
        if self.tokenizer.info.eos_id is not None:
            ids.append(self.tokenizer.info.eos_id)
        # The configuration class has a default id, which counts only if the checkpoint names none.
        ids = ids or list(_token_ids(self.config.eos_token_id))
        return tuple(dict.fromkeys(token for token in ids if token < self.config.vocab_size))

    @cached_property
    def tokenizer(self) -> CheckpointTokenizer:
        """The tokenizer, loaded at first use; CheckpointError if it cannot be read."""
        return self._load_tokenizer()

    def vocabulary(self) -> dict[str, int]:
        """Return the id of every token, added tokens included."""
        return self.tokenizer.vocabulary()

    def save_tokenizer(self, folder: Path) -> TokenizerSettings:
        """Write tokenizer.json, and chat_template.jinja if there is a template, into an existing folder."""
        return self.tokenizer.save(folder)

    def _stored(self, name: str) -> str:
        if name not in self._stored_names:
            raise CheckpointError(f"{self.path} has no tensor {name}", expected=f"those of a {self.model_type} model")
        return self._stored_names[name]


def open_checkpoint(path: Path, open_weights: OpenWeights = open_safetensors) -> Checkpoint:
    """Open a Hugging Face folder or a GGUF file.

    Args:
        path: of either.
        open_weights: gives the weights of a folder.

    Raises:
        CheckpointError: nothing there, no configuration or tokenizer, weights that are missing, truncated,
            quantised or stored as a pickle, or a model that cannot be exported.
    """
    if path.is_dir():
        return _open_folder(path, open_weights)
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist", expected="a model folder or a .gguf file", hint="check the path"
        )
    if path.suffix == ".gguf":
        return _open_gguf(path)
    raise CheckpointError(
        f"{path} is a file", expected="a model folder or a .gguf file", hint="give the folder that holds config.json"
    )


def _open_folder(folder: Path, open_weights: OpenWeights) -> Checkpoint:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            hint = "this is an adapter: give the model it belongs to as the base, and this folder as the PersRM"
        elif list(folder.glob("*.gguf")):
            hint = "give the .gguf file itself"
        else:
            hint = "give the folder that the model was saved to"
        raise CheckpointError(f"{folder} has no config.json", expected="a Hugging Face model folder", hint=hint)
    raw = read_object(folder / "config.json", CheckpointError, hint="download it again")
    check_architectures(folder, raw)
    text = raw.get("text_config")
    nested = text if isinstance(text, dict) else {}
    if raw.get("quantization_config") or nested.get("quantization_config"):
        raise CheckpointError(
            f"{folder} is quantised (quantization_config in config.json)",
            expected="full-precision weights",
            hint="export the original checkpoint",
        )
    num_layers = nested.get("num_hidden_layers", raw.get("num_hidden_layers", 1))
    if not isinstance(num_layers, int) or not 0 < num_layers <= MAX_LAYERS:  # configuration classes make such lists
        raise CheckpointError(
            f"{folder}: num_hidden_layers is {reprlib.repr(num_layers)}", expected=f"1 to {MAX_LAYERS}"
        )
    full = _load_config(folder)
    config = full.get_text_config(decoder=True)
    if config is not full and full.tie_word_embeddings:
        config.tie_word_embeddings = True
    weights = open_weights(folder)
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder} has no tokenizer", expected="tokenizer.json", hint="save the model's tokenizer into this folder"
        )
    defaults = folder / "generation_config.json"
    generation = read_object(defaults, CheckpointError, hint="download it again") if defaults.is_file() else {}
    eos = [
        *_token_ids(raw.get("eos_token_id", nested.get("eos_token_id"))),
        *_token_ids(generation.get("eos_token_id")),
    ]
    called = raw.get("_name_or_path")
    return Checkpoint(
        folder,
        config,
        weights,
        load_tokenizer=partial(load_folder_tokenizer, folder, config.vocab_size),
        stored_eos=tuple(eos),
        called=(called,) if isinstance(called, str) and called else (),
    )


def _open_gguf(path: Path) -> Checkpoint:
    weights = open_gguf(path)
    try:
        config = AutoConfig.for_model(weights.model_type, **weights.config)
    except Exception as error:  # a configuration class may raise anything on values it does not expect
        raise CheckpointError(
            f"the metadata of {path} is not that of a {weights.model_type} model ({error})", hint="download it again"
        ) from error
    return Checkpoint(
        path,
        config,
        weights,
        load_tokenizer=partial(load_gguf_tokenizer, path, weights.vocabulary),
        stored_eos=weights.eos_token_ids,
        called=weights.names,
    )


def _load_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a configuration class may raise anything on values it does not expect
        raise CheckpointError(
            f"{folder / 'config.json'} cannot be read ({error})",
            expected="a model type that transformers knows",
            hint="choose another checkpoint or update transformers",
        ) from error


def _token_ids(value: Any) -> tuple[int, ...]:
    """Return the ids in an `eos_token_id`, which is an id, several, or nothing."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool))

"""Weights stored as safetensors: one file, or shards listed by an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pad_export.read.json_file import read_object
from pad_export.weights.blocks import Blocks
from pad_runtime.errors import CheckpointError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class SafetensorsWeights:
    """Tensors by the names and in the dtypes they are stored with, read one at a time.

    Attributes:
        shapes: shape of each tensor, known without reading it.
        nbytes: bytes on disk, all shards together.
    """

    shapes: dict[str, tuple[int, ...]]
    nbytes: int
    _files: dict[str, Path]

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype."""
        # The file is opened for every tensor: an open mapping keeps all pages that were read in memory, and reading
        # all tensors through one handle would keep the whole file there.
        with _open(self._files[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def read_blocks(self, name: str, bits: int) -> Blocks | None:
        """Return None: every tensor is stored whole."""
        del name, bits
        return None


def open_safetensors(folder: Path) -> SafetensorsWeights:
    """Open the weights of a Hugging Face folder.

    Raises:
        CheckpointError: no safetensors here, a missing shard, or a truncated file.
    """
    if (folder / WEIGHTS_NAME).is_file():
        paths, listed = [folder / WEIGHTS_NAME], {}
    elif (folder / INDEX_NAME).is_file():
        listed = _read_index(folder / INDEX_NAME)
        paths = [folder / shard for shard in sorted(set(listed.values()))]
    else:
        raise _no_weights(folder)
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if not path.is_file():
            raise CheckpointError(
                f"shard {path} is missing",
                expected=f"every file that {INDEX_NAME} lists",
                hint="download the checkpoint again",
            )
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                files[name] = path
                shapes[name] = tuple(file.get_slice(name).get_shape())
    for name, shard in listed.items():
        if files.get(name) != folder / shard:
            raise CheckpointError(
                f"tensor {name} is not in {folder / shard}",
                expected=f"what {INDEX_NAME} lists",
                hint="download the checkpoint again",
            )
    return SafetensorsWeights(shapes, sum(path.stat().st_size for path in paths), files)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a small safetensors file whole (an adapter, a head); SafetensorError or OSError if it is damaged."""
    # Cloned, because a tensor that maps the file would change or fault when the file does.
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error})",
            expected="a whole safetensors file",
            hint="download or save it again",
        ) from error


def _read_index(path: Path) -> dict[str, str]:
    """Return the shard of each tensor."""
    weight_map = read_object(path, CheckpointError, hint="download the checkpoint again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map", hint="download the checkpoint again")
    for shard in weight_map.values():
        # A file name and nothing else: an index must not lead out of its own folder.
        if not isinstance(shard, str) or not shard or "/" in shard or "\\" in shard or shard in {".", ".."}:
            raise CheckpointError(f"{path} lists the shard {shard!r}", expected="a file name in the same folder")
    return weight_map


def _no_weights(folder: Path) -> CheckpointError:
    expected = f"{WEIGHTS_NAME} or {INDEX_NAME}"
    if list(folder.glob("pytorch_model*.bin*")):
        return CheckpointError(
            f"{folder} holds its weights only as pytorch_model.bin, a pickle, which can run code when it is read",
            expected=expected,
            hint="convert a checkpoint you trust with transformers, which must report no missing weight: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True)",
        )
    return CheckpointError(f"{folder} holds no weights", expected=expected, hint="download the checkpoint again")

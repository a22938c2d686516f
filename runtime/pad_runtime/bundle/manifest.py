"""The manifest of a bundle, `pad.json`: written by the exporter, read with checks. No meaning is in file names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np

from pad_runtime.bundle import contract
from pad_runtime.bundle.checked_json import HINT, Check, FileName, Name, between, parse
from pad_runtime.bundle.file_info import FileInfo
from pad_runtime.bundle.held_file import BundleFiles
from pad_runtime.bundle.manifest_relations import check_relations
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.errors import BundleError, DeviceError

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Activations = Literal["fp32", "fp16", "bf16"]
DialectName = Literal["ort", "standard"]
FloatType = Literal["float32", "float16", "bfloat16"]  # NumPy's and torch's names
Reference = Literal["base", "backbone"]
Topology = Literal["shared", "pair"]

# Ranges that hold before anything is sized by a number; opening a graph compares the numbers with the graph's own.
_Size: TypeAlias = Annotated[int, between(1, 2**24)]
_Ids: TypeAlias = Annotated[int, between(0, 2**31 - 1)]
_Site: TypeAlias = Annotated[
    str, Check(f"one of {', '.join(contract.LORA_SITES)}", lambda name: name in contract.LORA_SITES)
]
_Widths: TypeAlias = Annotated[list[_Size], Check("[in, out]", lambda widths: len(widths) == 2)]
_AxisRange: TypeAlias = Annotated[
    list[_Ids], Check("[least, tuned for, most]", lambda sizes: len(sizes) == 3 and sizes == sorted(sizes))
]
_Capability: TypeAlias = Annotated[str, Check('one such as "sm89"', re.compile("sm[0-9]{2,3}").fullmatch)]
_CHECKSUM = "checksum"  # the field of pad.json that holds a SHA-256 of all the others


@dataclass(frozen=True)
class TrunkInfo:
    """Sizes of one trunk.

    Its first `prompt_layers` run once for each prompt, the others for each row, with their adapters. `lora_sites` maps
    a packed linear to its [in_features, out_features]; `mixes_heads` says that its logits are linear in the feature
    head, which they are unless the family caps its logits.
    """

    name: Name
    model_type: str
    hidden_size: _Size
    num_layers: Annotated[int, between(1, 1024)]
    num_heads: _Size
    num_kv_heads: _Size
    head_dim: _Size
    prompt_layers: Annotated[int, between(0, 1024)]
    lora_sites: dict[_Site, _Widths]
    has_features: bool
    mixes_heads: bool


@dataclass(frozen=True)
class PersRMInfo:
    """A PersRM of the bundle.

    `trunk` runs its rows. `adapter` is the path of its adapter in the bundle, None if it is merged into the trunk.
    `reference_trunk` runs the row of its backbone, None if its reference is the base.
    """

    name: Name
    trunk: Name
    adapter: FileName | None
    feature_head: FileName | None
    features: list[Name]
    default_weights: list[float]
    reference_trunk: Name | None
    prompt_template: str

    @property
    def takes_text(self) -> bool:
        """Whether its prompt template has a place for a preference in words."""
        return "{p}" in self.prompt_template


@dataclass(frozen=True)
class GraphInfo:
    """An ONNX graph and the inputs and outputs that it must have, in order."""

    file: FileName
    inputs: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class EngineInfo:
    """A TensorRT engine of a graph, and the only library, system and GPUs that it runs on.

    `version` is the library's; `compute_capabilities` are written "sm89"; `profiles` give, by name, the least size of
    each axis of the graph's inputs, the size that the engine is tuned for, and the largest.
    """

    file: FileName
    graph: str
    target: contract.EngineTarget
    version: str
    platform: str
    compute_capabilities: list[_Capability]
    profiles: dict[str, dict[str, _AxisRange]]


@dataclass(frozen=True)
class TokenizerInfo:
    """Tokenizer files and the special tokens that chat templates ask for."""

    file: FileName
    chat_template: FileName | None
    bos_token: str | None
    eos_token: str | None


@dataclass(frozen=True)
class Manifest:
    """Everything that the runtime knows of a bundle before it opens a graph.

    `precision` is how the weights are stored; `float_type` is the element type of activations, KV cache, adapters,
    feature heads, and weights that are not in blocks.
    """

    format: str
    format_version: int
    versions: dict[str, str]
    base: str
    topology: Topology
    reference: Reference
    precision: Precision
    float_type: FloatType
    dialect: DialectName
    vocab_size: Annotated[int, between(1, 2**31 - 1)]
    max_length: Annotated[int, between(2, 2**31 - 1)]
    max_batch: Annotated[int, between(1, 1024)]
    max_top_k: Annotated[int, between(1, 2**31 - 1)]
    eos_token_ids: list[_Ids]
    trunks: list[TrunkInfo]
    persrms: list[PersRMInfo]
    graphs: dict[str, GraphInfo]
    tokenizer: TokenizerInfo
    files: dict[FileName, FileInfo]
    engines: list[EngineInfo] = field(default_factory=list)

    @property
    def dtype(self) -> np.dtype[Any]:
        """`float_type` as a NumPy type.

        Raises:
            DeviceError: the bundle is in bfloat16, and ml-dtypes, which adds that type to NumPy, is not installed.
        """
        if self.float_type == "bfloat16":
            try:
                import ml_dtypes  # noqa: F401 - teaches NumPy the name
            except ModuleNotFoundError:
                raise DeviceError(
                    "ml-dtypes is not installed, and the bundle is in bfloat16", hint="pip install 'pad-rt[cuda]'"
                ) from None
        return np.dtype(self.float_type)

    @property
    def digest(self) -> str:
        """SHA-256 of its fields, the files' own SHA-256 among them: it tells this bundle from every other."""
        return checksum(dataclasses.asdict(self))

    def is_contrast(self, persrm: PersRMInfo) -> bool:
        """Whether the base with the preference in its prompt stands in for a PersRM."""
        return persrm.trunk == self.trunks[0].name and persrm.adapter is None and persrm.feature_head is None

    def trunk_index(self, name: str) -> int:
        """Position of a trunk by name."""
        return [trunk.name for trunk in self.trunks].index(name)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `pad.json` into a bundle folder; an existing one is replaced whole or not at all."""
    data = dataclasses.asdict(manifest)
    text = json.dumps({**data, _CHECKSUM: checksum(data)}, indent=1, ensure_ascii=False)
    write_whole(folder / contract.MANIFEST_FILE, (text + "\n").encode())


def checksum(data: dict[str, Any]) -> str:
    """SHA-256 of a manifest's fields in their order, without white space and without the checksum itself."""
    fields = {name: value for name, value in data.items() if name != _CHECKSUM}
    return hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()


def open_bundle(folder: Path, *, check: bool = False) -> tuple[Manifest, BundleFiles]:
    """Read and check `pad.json`: its checksum, fields, types, limits, cross-references; and open every file it lists.

    Args:
        folder: the bundle.
        check: hash large files, too, instead of sampling them.

    Raises:
        BundleError: a field or file is wrong; says which, what it holds and what was expected.
    """
    path = folder / contract.MANIFEST_FILE
    try:
        if not folder.is_dir():
            raise BundleError(f"no bundle at {folder}", expected="a folder written by pad-export")
        if not path.is_file():
            raise BundleError(f"{folder} has no {contract.MANIFEST_FILE}", expected="a folder written by pad-export")
        folder = folder.resolve()
    except OSError as error:
        raise _unreadable(path, error) from None
    manifest = parse_manifest(path)
    return manifest, BundleFiles(folder, manifest.files, whole=check)


def parse_manifest(path: Path) -> Manifest:
    """The manifest in a file, with the checks and errors of `open_bundle`; files that it lists are not looked for."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}", hint=HINT) from None
    return _check(data, path)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle, with the checks and errors of `open_bundle`."""
    return open_bundle(folder)[0]


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Hash every file of the bundle, the weights too.

    Raises:
        BundleError: a file differs from what was exported.
    """
    BundleFiles(folder, manifest.files, whole=True)


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read: {error.strerror}", hint="check the path and its rights")


def _check(data: Any, path: Path) -> Manifest:
    if not isinstance(data, dict) or data.get("format") != contract.FORMAT:
        raise BundleError(f"{path} is not a PAD-RT manifest", expected=f'"format": "{contract.FORMAT}"', hint=HINT)
    if data.get("format_version") != contract.FORMAT_VERSION:
        raise BundleError(
            f"{path} has format_version {data.get('format_version')!r:.60}",
            expected=str(contract.FORMAT_VERSION),
            hint="export it again with this version of pad-export, or install the version that wrote it",
        )
    if data.pop(_CHECKSUM, None) != checksum(data):
        raise BundleError(f"{path} was altered: its fields do not give its checksum", hint=HINT)
    manifest: Manifest = parse(data, Manifest, contract.MANIFEST_FILE)
    check_relations(manifest)
    return manifest

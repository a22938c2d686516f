"""The manifest of a bundle, `pad.json`: read with checks, written by the exporter. File names mean nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pad_runtime import contract
from pad_runtime.errors import BundleError, DeviceError

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Activations = Literal["fp32", "fp16", "bf16"]
DialectName = Literal["ort", "standard"]
FloatType = Literal["float32", "float16", "bfloat16"]  # NumPy's and torch's names
Reference = Literal["base", "backbone"]
Topology = Literal["shared", "pair"]

_SMALL_FILE = 32 * 1024 * 1024  # bytes; loading hashes files up to this size, `verify_files` hashes all
_HINT = "export it again with pad-export, or copy it again"


@dataclass(frozen=True)
class TrunkInfo:
    """Sizes of one trunk.

    Its first `prompt_layers` run once for each prompt, the others for each row, with their adapters. `lora_sites` maps
    a packed linear to its [in_features, out_features]; `mixes_heads` says that its logits are linear in the feature
    head, which they are unless the family caps its logits.
    """

    name: str
    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    prompt_layers: int
    lora_sites: dict[str, list[int]]
    has_features: bool
    mixes_heads: bool


@dataclass(frozen=True)
class PersRMInfo:
    """One reward a preference can call on.

    `trunk` runs its rows; `adapter` is its LoRA, relative to the bundle, where it is not merged; `reference_trunk` is
    where its frozen backbone's row runs, or None where the reference is the base row itself.
    """

    name: str
    trunk: str
    adapter: str | None
    head: str | None
    features: list[str]
    default_weights: list[float]
    reference_trunk: str | None
    prompt_template: str

    @property
    def takes_text(self) -> bool:
        """Whether its prompt has a place for a preference in words."""
        return "{p}" in self.prompt_template


@dataclass(frozen=True)
class GraphInfo:
    """One ONNX graph and the inputs and outputs it must have, in order."""

    file: str
    inputs: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class EngineInfo:
    """A TensorRT engine of one graph and what it was built for: it runs on that and on nothing else.

    `version` is the library's; `compute_capabilities` are written "sm89"; `profiles` are by name, and give each axis of
    the graph's inputs its least size, the one that it was tuned for, and its largest.
    """

    file: str
    graph: str
    target: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    platform: str
    compute_capabilities: list[str]
    profiles: dict[str, dict[str, list[int]]]


@dataclass(frozen=True)
class TokenizerInfo:
    """Tokenizer files and the special tokens that chat templates ask for."""

    file: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything an app's runtime knows of a bundle before it opens a graph.

    `precision` is of the weights; `float_type` of activations, KV cache, adapters, heads, and what is not in blocks.
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
    vocab_size: int
    max_length: int
    max_batch: int
    max_top_k: int
    eos_token_ids: list[int]
    trunks: list[TrunkInfo]
    persrms: list[PersRMInfo]
    graphs: dict[str, GraphInfo]
    tokenizer: TokenizerInfo
    files: dict[str, FileInfo]
    engines: list[EngineInfo] = field(default_factory=list)

    @property
    def dtype(self) -> np.dtype[Any]:
        """`float_type` as NumPy's.

        Raises:
            DeviceError: the bundle is in bfloat16, which NumPy has from ml-dtypes, and that is not installed.
        """
        if self.float_type == "bfloat16":
            try:
                import ml_dtypes  # noqa: F401 - teaches NumPy the name
            except ModuleNotFoundError:
                raise DeviceError(
                    "ml-dtypes is not installed, and the bundle is in bfloat16", hint="pip install 'pad-rt[cuda]'"
                ) from None
        return np.dtype(self.float_type)

    def trunk_index(self, name: str) -> int:
        """Position of a trunk by name."""
        return [trunk.name for trunk in self.trunks].index(name)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `pad.json` into a bundle folder; one that is there is replaced whole or not at all."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    path = folder / contract.MANIFEST_FILE
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def read_manifest(folder: Path) -> Manifest:
    """Read and check `pad.json`: fields, types, cross-references, and that every listed file is there and whole.

    Raises:
        BundleError: says which field or file is wrong, what it holds and what was expected.
    """
    path = folder / contract.MANIFEST_FILE
    try:
        if not folder.is_dir():
            raise BundleError(f"no bundle at {folder}", expected="a folder written by pad-export")
        if not path.is_file():
            raise BundleError(f"{folder} has no {contract.MANIFEST_FILE}", expected="a folder written by pad-export")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint="check the path and its rights") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}", hint=_HINT) from None
    if not isinstance(data, dict) or data.get("format") != contract.FORMAT:
        raise BundleError(f"{path} is not a PAD-RT manifest", expected=f'"format": "{contract.FORMAT}"', hint=_HINT)
    if data.get("format_version") != contract.FORMAT_VERSION:
        raise BundleError(
            f"{path} has format_version {data.get('format_version')!r}",
            expected=str(contract.FORMAT_VERSION),
            hint="export it again with this version of pad-export, or install the version that wrote it",
        )
    manifest: Manifest = _parse(data, Manifest, contract.MANIFEST_FILE)
    _check_references(manifest)
    _check_files(folder, manifest, largest_hashed=_SMALL_FILE)
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Hash every file of the bundle, the weights too.

    Raises:
        BundleError: a file differs from what was exported.
    """
    _check_files(folder, manifest, largest_hashed=None)


def describe_file(path: Path) -> FileInfo:
    """Size and SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return FileInfo(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _check_files(folder: Path, manifest: Manifest, *, largest_hashed: int | None) -> None:
    for name, info in manifest.files.items():
        path = folder / name
        try:
            if not path.is_file():
                raise BundleError(f"{path} is missing", hint=_HINT)
            size = path.stat().st_size
            if size != info.size:
                raise BundleError(f"{path} has {size} bytes", expected=f"{info.size}", hint=_HINT)
            if (largest_hashed is None or size <= largest_hashed) and describe_file(path).sha256 != info.sha256:
                raise BundleError(f"{path} was altered: its SHA-256 is not the manifest's", hint=_HINT)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}", hint=_HINT) from None


def _check_references(manifest: Manifest) -> None:
    """Names that point at one another must meet."""
    at = contract.MANIFEST_FILE
    if not manifest.trunks or manifest.trunks[0].name != contract.BASE_TRUNK:
        raise BundleError(f"{at}: the first trunk is not '{contract.BASE_TRUNK}'", hint=_HINT)
    trunks = {trunk.name for trunk in manifest.trunks}
    if len(trunks) != len(manifest.trunks):
        raise BundleError(f"{at}: two trunks have one name", hint=_HINT)
    for trunk in manifest.trunks:
        sizes = (trunk.hidden_size, trunk.num_layers, trunk.num_heads, trunk.num_kv_heads, trunk.head_dim)
        if min(sizes) < 1:
            raise BundleError(
                f"{at}: trunk '{trunk.name}' has a size of {min(sizes)}", expected="at least 1", hint=_HINT
            )
        if not 0 <= trunk.prompt_layers <= trunk.num_layers:
            raise BundleError(
                f"{at}: trunk '{trunk.name}' has prompt_layers {trunk.prompt_layers}",
                expected=f"0 to {trunk.num_layers}",
                hint=_HINT,
            )
        for site, widths in trunk.lora_sites.items():
            if site not in contract.LORA_SITES or len(widths) != 2:
                raise BundleError(
                    f"{at}: trunk '{trunk.name}' has the adapter site '{site}' {widths}",
                    expected=f"[in, out] at {', '.join(contract.LORA_SITES)}",
                    hint=_HINT,
                )
    if not manifest.persrms:
        raise BundleError(f"{at}: persrms is empty", expected="at least one reward", hint=_HINT)
    for persrm in manifest.persrms:
        for name in filter(None, (persrm.trunk, persrm.reference_trunk)):
            if name not in trunks:
                raise BundleError(
                    f"{at}: PersRM '{persrm.name}' runs on trunk '{name}'",
                    expected=f"one of {', '.join(sorted(trunks))}",
                    hint=_HINT,
                )
        if not persrm.features or len(persrm.features) != len(persrm.default_weights):
            raise BundleError(f"{at}: PersRM '{persrm.name}' needs as many default_weights as features", hint=_HINT)
    for name, count in (("max_length", 2), ("max_batch", 1), ("max_top_k", 1), ("vocab_size", 1)):
        if getattr(manifest, name) < count:
            raise BundleError(f"{at}: {name} is {getattr(manifest, name)}", expected=f"at least {count}", hint=_HINT)
    needed = [graph.file for graph in manifest.graphs.values()] + [engine.file for engine in manifest.engines]
    needed += [name for p in manifest.persrms for name in (p.adapter, p.head) if name]
    needed += [name for name in (manifest.tokenizer.file, manifest.tokenizer.chat_template) if name]
    for name in needed:
        if name not in manifest.files:
            raise BundleError(f"{at}: '{name}' is used and not listed under files", hint=_HINT)
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{at}: file '{name}' lies outside the bundle", hint=_HINT)
    for name in (contract.STEP_GRAPH, contract.BASE_GRAPH, *(engine.graph for engine in manifest.engines)):
        if name not in manifest.graphs:
            raise BundleError(f"{at}: no graph '{name}'", hint=_HINT)


def _parse(value: Any, kind: Any, at: str) -> Any:
    """Build `kind` from JSON, refusing wrong types, missing fields and unknown ones by their path."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(value, kind, at)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _wrong(at, value, " or ".join(map(repr, arguments)))
        return value
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(at, value, "a list")
        return [_parse(item, arguments[0], f"{at}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(at, value, "an object")
        return {key: _parse(item, arguments[1], f"{at}.{key}") for key, item in value.items()}
    if origin is types.UnionType:
        return None if value is None else _parse(value, arguments[0], at)
    if kind is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:  # JSON has NaN, Infinity, and integers of any size
            raise _wrong(at, value, "a finite number")
        return float(value)
    if type(value) is not kind:
        raise _wrong(
            at, value, {"str": "text", "int": "a whole number", "bool": "true or false"}.get(kind.__name__, "a number")
        )
    return value


def _parse_dataclass(value: Any, kind: Any, at: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(at, value, "an object")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise BundleError(f"{at}: unknown field '{name}'", hint=_HINT)
    given = {}
    for item in dataclasses.fields(kind):
        if item.name in value:
            given[item.name] = _parse(value[item.name], hints[item.name], f"{at}.{item.name}")
        elif item.default_factory is dataclasses.MISSING:
            raise BundleError(f"{at}: field '{item.name}' is missing", hint=_HINT)
    return kind(**given)


def _wrong(at: str, value: Any, expected: str) -> BundleError:
    shown = reprlib.repr(value) if isinstance(value, dict | list) else json.dumps(value)  # nested or long as they like
    return BundleError(f"{at} is {shown if len(shown) <= 60 else shown[:57] + '...'}", expected=expected, hint=_HINT)

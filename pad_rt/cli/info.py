"""`pad info`: what a bundle holds and which devices run it on this machine, as a page or as JSON."""

from __future__ import annotations

import platform
import textwrap
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import EngineInfo, Manifest, PersRMInfo, TrunkInfo, open_bundle
from pad_runtime.devices.choice import Finding, survey
from pad_runtime.devices.cuda import Gpu, find_cuda
from pad_runtime.errors import DeviceError

_TOPOLOGIES = {
    "shared": "the PersRMs run as rows on the base's own weights",
    "pair": "the PersRMs run on weights of their own",
}
_REFERENCES = {"base": "the base itself", "backbone": "the PersRM's own frozen backbone"}
_LIBRARIES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-python",
)
_LABEL_WIDTH = 12
_WIDTH = 100


@dataclass(frozen=True)
class BundleInfo:
    """A bundle's manifest, its sizes, and the machine it was read on.

    Attributes:
        folder: the bundle.
        manifest: the bundle's manifest.
        checked: whether every file was hashed and found whole.
        findings: for each device, whether it would run the bundle, or why it cannot.
        gpu: the CUDA device, None without one.
        libraries: versions of the installed packages that can run graphs.
    """

    folder: Path
    manifest: Manifest
    checked: bool
    findings: tuple[Finding, ...]
    gpu: Gpu | None
    libraries: dict[str, str]

    @classmethod
    def read(cls, folder: Path, *, check: bool = False) -> BundleInfo:
        """Read the manifest of a bundle and look at this machine; `check` hashes every file.

        Raises:
            BundleError: the bundle is missing, truncated, altered or inconsistent.
        """
        manifest, _ = open_bundle(folder, check=check)
        try:
            gpu = find_cuda().gpu()
        except DeviceError:
            gpu = None
        return cls(folder, manifest, check, tuple(survey(folder, manifest)), gpu, _find_libraries())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        manifest_file = (self.folder / contract.MANIFEST_FILE).stat().st_size
        return manifest_file + sum(file.size for file in self.manifest.files.values())

    def as_dict(self) -> dict[str, Any]:
        """The same as an object for JSON."""
        return {
            "folder": str(self.folder),
            "size": self.size,
            "checked": self.checked,
            "manifest": asdict(self.manifest),
            "here": {
                "python": platform.python_version(),
                "libraries": self.libraries,
                "gpu": asdict(self.gpu) if self.gpu else None,
                "devices": [asdict(finding) for finding in self.findings],
            },
        }

    def as_text(self) -> str:
        """The same as a page for a terminal."""
        manifest = self.manifest
        chat = "template" if manifest.tokenizer.chat_template else "no template: prompts are raw text"
        lines = [
            _line("bundle", str(self.folder)),
            _line("size", f"{_size(self.size)}, {'every file whole' if self.checked else 'not checked (--check)'}"),
            _line("base", manifest.base),
            *(_line("" if i else "weights", _describe_trunk(trunk)) for i, trunk in enumerate(manifest.trunks)),
            _line("topology", f"{manifest.topology}: {_TOPOLOGIES[manifest.topology]}"),
            _line("reference", f"{manifest.reference}: rewards are measured against {_REFERENCES[manifest.reference]}"),
            _line(
                "precision",
                f"{manifest.precision} weights, {manifest.float_type} activations, {manifest.dialect} dialect",
            ),
            _line("limits", f"{manifest.max_length} tokens of prompt and reply (max_length)"),
            _line(
                "", f"{manifest.max_batch} sequences at once (max_batch), {manifest.max_top_k} candidates (max_top_k)"
            ),
            _line("chat", chat),
        ]
        for persrm in manifest.persrms:
            lines += _describe_persrm(persrm)
        for index, engine in enumerate(manifest.engines):
            lines.append(_line("" if index else "engines", _describe_engine(engine)))
        for index, (name, file) in enumerate(manifest.files.items()):
            lines.append(_line("" if index else "files", f"{_size(file.size):>10}  {name}"))
        versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
        lines.append(_line("written by", versions))
        libraries = [f"{name} {version}" for name, version in self.libraries.items()]
        lines.append(_line("here", ", ".join([f"Python {platform.python_version()}", *libraries])))
        lines.append(_line("gpu", _describe_gpu(self.gpu) if self.gpu else "no CUDA device"))
        for index, finding in enumerate(self.findings):
            text = f"{finding.device}: {'yes' if finding.usable else 'no'}, {finding.detail}"
            lines.append(_line("" if index else "--device", text))
        return "\n".join(lines)


def _find_libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _describe_gpu(gpu: Gpu) -> str:
    cuda = f"CUDA {gpu.runtime} over a driver for {gpu.driver}"
    return f"{gpu.name}, {gpu.compute_capability}, {_size(gpu.memory)}, {cuda}"


def _describe_trunk(trunk: TrunkInfo) -> str:
    heads = f"{trunk.num_heads} heads over {trunk.num_kv_heads} KV heads of {trunk.head_dim}"
    adapters = ""
    if trunk.lora_sites:
        adapters = f", adapters at {', '.join(trunk.lora_sites)}"
        if trunk.prompt_layers:
            adapters += (
                f" of the last {trunk.num_layers - trunk.prompt_layers} layers: below, rows with one prompt are one"
            )
    return f"{trunk.name}: {trunk.model_type}, {trunk.num_layers} layers of {trunk.hidden_size}, {heads}{adapters}"


def _describe_persrm(persrm: PersRMInfo) -> list[str]:
    if persrm.adapter:
        kind = "LoRA adapter"
    elif persrm.trunk == contract.BASE_TRUNK:
        kind = "no PersRM: the base with the preference in its prompt, against the base without"
    else:
        kind = "merged model"
    if persrm.feature_head:
        kind += " with a feature head"
    weights = zip(persrm.features, persrm.default_weights, strict=True)
    return [
        _line("reward", f"{persrm.name}: {kind}"),
        _line("", "features and their default weights: " + ", ".join(f"{name}={w:g}" for name, w in weights)),
        _line("", f"prompt: {persrm.prompt_template}"),
    ]


def _describe_engine(engine: EngineInfo) -> str:
    sizes = ", ".join(
        f"{name} {axes[contract.SEQUENCES][2]} x {axes[contract.NEW_TOKENS][2]} tokens"
        for name, axes in engine.profiles.items()
    )
    gpus = ", ".join(engine.compute_capabilities)
    return f"{engine.graph}: {engine.target} {engine.version} for {gpus} on {engine.platform}; up to {sizes}"


def _line(label: str, text: str) -> str:
    """A labelled line; text that is too long is wrapped and indented."""
    indent = " " * _LABEL_WIDTH
    # Every line of a prompt template is kept as a line.
    wrapped = [
        textwrap.fill(part, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
        for part in text.splitlines() or [""]
    ]
    return f"{label:<{_LABEL_WIDTH}}" + "\n".join(wrapped)[_LABEL_WIDTH:]


def _size(num_bytes: int) -> str:
    if num_bytes < 2**10:
        return f"{num_bytes} B"
    for unit, scale in (("KiB", 2**10), ("MiB", 2**20)):
        if num_bytes < 1000 * scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 2**30:.2f} GiB"

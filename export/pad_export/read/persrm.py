"""A personalized reward model (PersRM): an adapter or a merged checkpoint, its feature head and its names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pad_export.read.adapter import CONFIG_NAME, LoraAdapter, read_adapter
from pad_export.read.checkpoint import Checkpoint, OpenWeights, open_checkpoint
from pad_export.read.json_file import read_object
from pad_export.read.model_name import repository_name
from pad_export.read.persrm_name import NAME
from pad_export.read.safetensors_file import open_safetensors, read_safetensors
from pad_runtime.errors import AdapterError

PROMPT_TEMPLATE = (
    "[Guidelines] Your task is to generate response by considering the following principle. "
    "[Principles] {p} [Instruction] {x}"
)
PLAIN_TEMPLATE = "{x}"  # of a PersRM that was trained on weights alone
SETTINGS_NAME = "pad_persrm.json"
FEATURE_HEAD_NAME = "value_head.safetensors"

_SETTINGS = ("name", "features", "default_weights", "prompt_template")
_FEATURE_HEAD_PREFIXES = ("v_head.summary.", "summary.", "", "feature_head.")


@dataclass(frozen=True)
class FeatureHead:
    """A linear map of the last hidden state for each feature: h'_i = W_i h + b_i, then the base's own lm_head.

    Attributes:
        weight: [d, hidden, hidden], float32; the last axis is the input.
        bias: [d, hidden], float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class PersRM:
    """A personalized reward model: exactly one of adapter and checkpoint.

    Attributes:
        name: name of the PersRM in a bundle.
        adapter: a LoRA adapter of a base that is stored elsewhere.
        checkpoint: a merged model.
        feature_head: the feature head, None for the identity.
        features: names of the d features.
        default_weights: weight of each feature for a preference without weights.
        prompt_template: the user turn in the PersRM's prompt; {x} is the prompt and {p} the preference.
    """

    name: str
    adapter: LoraAdapter | None
    checkpoint: Checkpoint | None
    feature_head: FeatureHead | None
    features: tuple[str, ...]
    default_weights: tuple[float, ...]
    prompt_template: str


def read_persrm(folder: Path, open_weights: OpenWeights = open_safetensors) -> PersRM:
    """Read a PersRM: a PEFT LoRA folder, or else a merged checkpoint (folder or GGUF file).

    Beside either may lie pad_persrm.json (name, features, default_weights, prompt_template) and
    value_head.safetensors, in the official layout (`v_head.summary.weight` [hidden, hidden], as LLaMA-Factory
    writes it) or with d features (`feature_head.weight` [d, hidden, hidden]). `open_weights` is `open_checkpoint`'s.

    Raises:
        AdapterError: an adapter, head or setting that cannot be used.
        CheckpointError: a merged checkpoint that cannot be opened.
    """
    beside = folder.parent if folder.is_file() else folder
    settings = _read_settings(beside)
    name = settings.get("name", _own_name(folder))
    _check_name(folder, "name", name)
    head = _read_feature_head(beside)
    features = _read_features(folder, settings, name, 1 if head is None else len(head.weight))
    adapter, checkpoint = None, None
    if (folder / CONFIG_NAME).is_file():
        adapter = read_adapter(folder)
    else:
        checkpoint = open_checkpoint(folder, open_weights)
        check_feature_head_fits(head, checkpoint, path=folder)
    return PersRM(
        name=name,
        adapter=adapter,
        checkpoint=checkpoint,
        feature_head=head,
        features=features,
        default_weights=_read_weights(folder, settings, features),
        prompt_template=_read_template(folder, settings),
    )


def check_feature_head_fits(head: FeatureHead | None, checkpoint: Checkpoint, *, path: Path) -> None:
    """Check that feature heads fit the checkpoint's hidden states.

    Args:
        head: the feature heads of the PersRM at `path`, None for the identity, which always fits.
        checkpoint: the PersRM's own backbone, or the base that its adapter belongs to.
        path: the PersRM's folder, for the message.

    Raises:
        AdapterError: their hidden sizes differ.
    """
    if head is not None and head.weight.shape[-1] != checkpoint.config.hidden_size:
        raise AdapterError(
            f"the head in {path} has hidden size {head.weight.shape[-1]}",
            expected=f"{checkpoint.config.hidden_size}, that of {checkpoint.path}",
            hint="give the head that was trained with this backbone",
        )


def _own_name(path: Path) -> str:
    """The name of a PersRM that has no settings: its file's or folder's, or its repository's in the hub's cache."""
    if path.is_file():
        return path.stem
    repository = repository_name(path)
    return path.resolve().name if repository is None else repository.rpartition("/")[2]


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_NAME
    if not path.is_file():
        return {}
    settings = read_object(path, AdapterError, hint="correct it or remove it")
    unknown = sorted(settings.keys() - set(_SETTINGS))
    if unknown:
        raise AdapterError(
            f"{path} has the unknown key {unknown[0]}", expected=f"only {', '.join(_SETTINGS)}", hint="remove it"
        )
    return settings


def _check_name(folder: Path, key: str, name: Any) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise AdapterError(
            f"{folder}: {key} {name!r} is not a name",
            expected="letters, digits, '.', '_' and '-', the first a letter or digit",
            hint=f"set {key} in {SETTINGS_NAME}",
        )


def _read_features(folder: Path, settings: dict[str, Any], name: str, num_features: int) -> tuple[str, ...]:
    features = settings.get("features", [name])
    if not isinstance(features, list):
        raise AdapterError(f"{folder}: features is {features!r}", expected="a list of names")
    for feature in features:
        _check_name(folder, "features", feature)
    if len(features) != num_features or len(set(features)) != len(features):
        raise AdapterError(
            f"{folder} names the features {', '.join(features)}",
            expected=f"{num_features} different name{'s' if num_features > 1 else ''}, one for each of the head",
            hint=f"set features in {SETTINGS_NAME}",
        )
    return tuple(features)


def _read_weights(folder: Path, settings: dict[str, Any], features: tuple[str, ...]) -> tuple[float, ...]:
    weights = settings.get("default_weights", [1.0] * len(features))
    if (
        not isinstance(weights, list)
        or len(weights) != len(features)
        or not all(isinstance(w, int | float) and not isinstance(w, bool) and abs(w) < 1e30 for w in weights)
    ):
        raise AdapterError(
            f"{folder}: default_weights is {weights!r}", expected=f"one number for each of {', '.join(features)}"
        )
    return tuple(float(weight) for weight in weights)


def _read_template(folder: Path, settings: dict[str, Any]) -> str:
    template = settings.get("prompt_template", PROMPT_TEMPLATE)
    # No other brace, so that filling it in means the same by str.format and by str.replace.
    if (
        not isinstance(template, str)
        or template.count("{x}") != 1
        or template.count("{p}") > 1
        or re.search(r"[{}]", template.replace("{x}", "").replace("{p}", ""))
    ):
        raise AdapterError(
            f"{folder}: prompt_template is {template!r}",
            expected="text with {x} once, {p} at most once, and no other braces",
            hint=f"correct it in {SETTINGS_NAME}",
        )
    return template


def _read_feature_head(folder: Path) -> FeatureHead | None:
    path = folder / FEATURE_HEAD_NAME
    if not path.is_file():
        if (folder / "value_head.bin").is_file():
            raise AdapterError(
                f"{folder / 'value_head.bin'} is a pickle, which can run code when it is read",
                expected=FEATURE_HEAD_NAME,
                hint="convert a head you trust: safetensors.torch.save_file("
                "torch.load('value_head.bin', weights_only=True), 'value_head.safetensors')",
            )
        return None
    try:
        tensors = read_safetensors(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path} is truncated or not a safetensors file ({error})", hint="download or save it again"
        ) from error
    prefix = next((prefix for prefix in _FEATURE_HEAD_PREFIXES if f"{prefix}weight" in tensors), None)
    unknown = sorted(tensors.keys() - {f"{prefix}weight", f"{prefix}bias"})
    if prefix is None or unknown:
        raise AdapterError(
            f"{path} holds {', '.join(unknown) or 'nothing'}",
            expected="v_head.summary.weight or feature_head.weight, and its bias",
            hint="save the head alone",
        )
    return _build_feature_head(path, prefix, tensors[f"{prefix}weight"], tensors.get(f"{prefix}bias"))


def _build_feature_head(path: Path, prefix: str, weight: torch.Tensor, bias: torch.Tensor | None) -> FeatureHead:
    num_axes = 3 if prefix == "feature_head." else 2
    if num_axes == 2 and weight.dim() == 2 and weight.shape[0] == 1:
        raise AdapterError(
            f"{path} is a scalar value head, weight {list(weight.shape)}",
            expected="a PAD head, [hidden, hidden]: a scalar reward does not score single tokens",
            hint="train the PersRM with pad-train",
        )
    if weight.dim() != num_axes or weight.shape[-1] != weight.shape[-2] or 0 in weight.shape:
        raise AdapterError(
            f"{path} has {prefix}weight {list(weight.shape)}",
            expected="[d, hidden, hidden]" if num_axes == 3 else "[hidden, hidden]",
            hint="train the PersRM with pad-train",
        )
    if num_axes == 2:
        weight = weight.unsqueeze(0)
        bias = None if bias is None else bias.unsqueeze(0)
    if bias is None:
        bias = weight.new_zeros(weight.shape[:2])
    if bias.shape != weight.shape[:2]:
        raise AdapterError(
            f"{path} has {prefix}bias {list(bias.shape)}", expected=f"{list(weight.shape[:2])}", hint="save it again"
        )
    head = FeatureHead(weight.float().contiguous(), bias.float().contiguous())
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise AdapterError(f"{path} has values that are not finite", hint="train the head again")
    return head

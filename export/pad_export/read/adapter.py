"""A LoRA adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pad_export.read.checkpoint import Checkpoint
from pad_export.read.file_patterns import SECONDS, match_all
from pad_export.read.json_file import read_object
from pad_export.read.model_class import check_task, foreign_hint, is_language_module
from pad_export.read.safetensors_file import read_safetensors
from pad_export.read.tensor_names import canonical_name, is_bare_name
from pad_runtime.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_LONGEST_NAME = 1000
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_MERGE = (
    "merge it with PEFT's merge_and_unload() into the very weights that it was trained on, save the model, "
    "and give that folder as the PersRM"
)
_CONVERT = "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"

# What each key of a LoraConfig would add to W + scale * B A. Empty or false, it adds nothing.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "replicated layers",
    "lora_bias": "a bias on lora_B",
    "target_parameters": "LoRA on bare parameters",
    "modules_to_save": "modules trained whole",
    "trainable_token_indices": "trained token embeddings",
    "fan_in_fan_out": "transposed (Conv1D) weights",
    "megatron_config": "Megatron layers",
}
# These say which modules the LoRA changes, which the tensors say as well, and how it was trained.
_IRRELEVANT = {
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "velora_config",
}
_READ = {
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
}
# Initialisations that leave the base's weights unchanged; the others subtract the initial B A from them.
_PLAIN_INITS = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}
_CONVERTIBLE_INITS = ("pissa", "olora", "corda", "lora_ga")
# Kinds of tensors that are no LoRA factors, by a part of their keys.
_FOREIGN_TENSORS = {
    "lora_embedding_": "LoRA on an embedding",
    "lora_magnitude_vector": "a DoRA magnitude",
    "token_adapter": "trained token embeddings",
    "trainable_tokens": "trained token embeddings",
    "modules_to_save": "a module trained whole",
    "embed_tokens": "a trained or resized embedding",
    "lm_head": "a trained or resized output projection",
    ".bias": "a trained bias",
}


@dataclass(frozen=True)
class LowRank:
    """A low-rank change of one linear layer: y = W x + b (a x), the scale being part of b.

    Attributes:
        a: [rank, in], float32.
        b: [out, rank], float32.
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter.

    Attributes:
        path: its folder.
        base_name: the base it was trained on, as its author named it; "" if unnamed.
        delta: the change of each module, by Hugging Face name (`model.layers.0.self_attn.q_proj`).
        is_bare: whether it was trained on a decoder without lm_head (AutoModel): module names lack the prefix `model.`.
    """

    path: Path
    base_name: str
    delta: dict[str, LowRank]
    is_bare: bool = False


@dataclass(frozen=True)
class _Scaling:
    """How PEFT derives each module's rank and scale from a LoraConfig.

    Attributes:
        rank, alpha: for the modules that no pattern matches.
        ranks, alphas: for the other modules, by their names in the tensors' keys.
        stabilised: whether alpha is divided by the rank's square root in place of the rank.
    """

    rank: int
    alpha: float
    ranks: dict[str, int]
    alphas: dict[str, float]
    stabilised: bool

    def of(self, module: str) -> tuple[int, float]:
        """Return rank and scale of a module, by its name in the tensors' keys."""
        rank, alpha = self.ranks.get(module, self.rank), self.alphas.get(module, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.stabilised else rank)


def read_adapter(folder: Path) -> LoraAdapter:
    """Read a PEFT LoRA adapter.

    Raises:
        AdapterError: no adapter here, damaged files, or a form that is not W + scale * B A on linear layers of
            the decoder (DoRA, trained embeddings or biases, PiSSA, another PEFT method, and the like).
    """
    config = _read_config(folder)
    base_name = config.get("base_model_name_or_path") or ""
    if not isinstance(base_name, str) or len(base_name) > _LONGEST_NAME:
        raise AdapterError(f"{folder}: base_model_name_or_path is {reprlib.repr(base_name)}", expected="a name or path")
    check_task(folder, config)
    _refuse_unsupported(folder, config)
    pairs = _pair(folder, _read_tensors(folder))
    _try_targets(folder, config, list(pairs))
    scaling = _read_scaling(folder, config, list(pairs))
    delta = {canonical_name(module): _scale(folder, module, factors, scaling) for module, factors in pairs.items()}
    if len(delta) < len(pairs):
        raise AdapterError(f"{folder} adapts a module under two names", expected="one", hint="save it again")
    return LoraAdapter(folder, base_name, delta, is_bare=any(map(is_bare_name, pairs)))


def check_fits(adapter: LoraAdapter, checkpoint: Checkpoint) -> None:
    """Check that the checkpoint has every module of the adapter, with its shape.

    Raises:
        AdapterError: a module is missing or has another shape; the adapter was trained on another base.
    """
    misfits = []
    for module, low_rank in adapter.delta.items():
        name = f"{module}.weight"
        wanted = (low_rank.b.shape[0], low_rank.a.shape[1])
        if name not in checkpoint.names:
            misfits.append(f"{module} is not in the base")
        elif checkpoint.shape(name) != wanted:
            misfits.append(f"{module} is {list(wanted)} in the adapter and {list(checkpoint.shape(name))} in the base")
    if misfits:
        raise AdapterError(
            f"{adapter.path} is an adapter for another base: {misfits[0]} "
            f"({len(misfits)} of {len(adapter.delta)} modules do not fit {checkpoint.path})",
            expected=f"an adapter of {checkpoint.path}",
            hint=f"give the base it was trained on: {adapter.base_name or 'its model card names it'}",
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterError(f"{folder} has no {CONFIG_NAME}", expected="a PEFT LoRA folder", hint="check the path")
    return read_object(path, AdapterError, hint="save the adapter again with PEFT")


def _refuse_unsupported(folder: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{folder} has the peft_type {config.get('peft_type')!r}", expected="LORA", hint="train a LoRA adapter"
        )
    for key, meaning in _UNSUPPORTED.items():
        if config.get(key):
            hint = _saved_hint(config[key]) if key == "modules_to_save" else _MERGE
            raise AdapterError(f"{folder} uses {meaning} ({key})", expected="plain LoRA", hint=hint)
    if config.get("bias") not in (None, "none"):
        raise AdapterError(f"{folder} trained biases (bias = {config['bias']!r})", expected="'none'", hint=_MERGE)
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_CONVERTIBLE_INITS):
        raise AdapterError(
            f"{folder} was initialised with {init}, which altered the base's weights",
            expected="an adapter of the original base",
            hint=_CONVERT,
        )
    if init not in _PLAIN_INITS:
        raise AdapterError(
            f"{folder} has init_lora_weights = {init!r}",
            expected="an initialisation that leaves the base's weights as they are",
            hint=_MERGE,
        )
    for key, value in config.items():
        if key not in _READ | _IRRELEVANT | _UNSUPPORTED.keys() and value:
            raise AdapterError(f"{folder} has the unknown option {key}", expected="plain LoRA", hint=_MERGE)


def _saved_hint(saved: Any) -> str:
    """The hint for modules that were trained whole: a merge keeps a language model's modules and loses all others."""
    names = saved if isinstance(saved, list) else [saved]
    foreign = [str(name) for name in names if not is_language_module(str(name))]
    return foreign_hint(foreign[0]) if foreign else _MERGE


def _read_scaling(folder: Path, config: dict[str, Any], modules: list[str]) -> _Scaling:
    stabilised = config.get("use_rslora") or False
    if not isinstance(stabilised, bool):
        raise AdapterError(f"{folder}: use_rslora is {stabilised!r}", expected="true or false")
    ranks = _read_patterns(folder, config, "rank_pattern", modules)
    alphas = _read_patterns(folder, config, "alpha_pattern", modules)
    return _Scaling(
        rank=_rank(folder, "r", config.get("r", 8)),
        alpha=_alpha(folder, "lora_alpha", config.get("lora_alpha", 8)),
        ranks={module: _rank(folder, "rank_pattern", value) for module, value in ranks.items()},
        alphas={module: _alpha(folder, "alpha_pattern", value) for module, value in alphas.items()},
        stabilised=stabilised,
    )


def _read_patterns(folder: Path, config: dict[str, Any], key: str, modules: list[str]) -> dict[str, Any]:
    """The value of the first pattern that matches, for each module that any pattern matches."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{folder}: {key} is {patterns!r}", expected="an object from module patterns to numbers")
    # As in PEFT, the first pattern that matches whole trailing components of the name decides.
    matches = _match(folder, key, [rf"(.*\.)?({pattern})$" for pattern in patterns], modules)
    found: dict[str, Any] = {}
    for value, row in zip(patterns.values(), matches, strict=True):
        for module, is_match in zip(modules, row, strict=True):
            if is_match:
                found.setdefault(module, value)
    return found


def _try_targets(folder: Path, config: dict[str, Any], modules: list[str]) -> None:
    """Check that the patterns which name the adapted modules can be matched: PEFT matches them during verification."""
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(key)
        several = value if key == "layers_pattern" and isinstance(value, list) else [value]
        _match(folder, key, [rf"(.*?\.)?({pattern})$" for pattern in several if isinstance(pattern, str)], modules)


def _match(folder: Path, key: str, patterns: list[str], modules: list[str]) -> list[list[bool]]:
    try:
        return match_all(patterns, modules)
    except (re.error, OverflowError, RecursionError) as error:
        raise AdapterError(f"{folder}: {key} has a pattern that is no regular expression ({error})") from error
    except TimeoutError:
        raise AdapterError(
            f"{folder}: {key} has a pattern that cannot be matched within {SECONDS:g} s",
            expected="a regular expression without repeats of repeats",
            hint="write the modules' names instead",
        ) from None


def _rank(folder: Path, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise AdapterError(f"{folder}: {key} gives the rank {value!r}", expected="a positive integer")
    return value


def _alpha(folder: Path, key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**31:
        raise AdapterError(f"{folder}: {key} gives alpha {value!r}", expected="a number")
    return float(value)


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise AdapterError(
                f"{folder} holds its weights only as adapter_model.bin, a pickle, which can run code when it is read",
                expected=WEIGHTS_NAME,
                hint="convert an adapter you trust with PEFT: "
                "PeftModel.from_pretrained(base, DIR).save_pretrained(NEW_DIR, safe_serialization=True)",
            )
        raise AdapterError(f"{folder} has no {WEIGHTS_NAME}", expected="a PEFT LoRA folder", hint="save it again")
    try:
        return read_safetensors(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path} is truncated or not a safetensors file ({error})", hint="download or save it again"
        ) from error


def _pair(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return both factors of each module, {"A": [rank, in], "B": [out, rank]}, by the name PEFT saw."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            kind = next((kind for part, kind in _FOREIGN_TENSORS.items() if part in key), "a tensor that is not LoRA's")
            hint = _MERGE if any(map(is_language_module, key.split("."))) else foreign_hint(key)
            raise AdapterError(f"{folder} holds {kind}, {key}", expected="plain LoRA", hint=hint)
        module = match["module"]
        if not is_language_module(module):
            raise AdapterError(
                f"{folder} adapts {module}", expected="LoRA on the decoder's layers", hint=foreign_hint(module)
            )
        if module.endswith(("lm_head", "embed_tokens")):
            raise AdapterError(f"{folder} adapts {module}", expected="LoRA on the decoder's layers", hint=_MERGE)
        factors = modules.setdefault(module, {})
        if match["factor"] in factors:
            raise AdapterError(
                f"{folder} holds {key} twice", expected="one tensor for each factor", hint="save it again"
            )
        factors[match["factor"]] = tensor
    if not modules:
        raise AdapterError(f"{folder} adapts no module", expected="at least one LoRA pair", hint="save it again")
    return modules


def _scale(folder: Path, module: str, factors: dict[str, torch.Tensor], scaling: _Scaling) -> LowRank:
    for factor in ("A", "B"):
        if factor not in factors:
            raise AdapterError(
                f"{folder} lacks lora_{factor} of {module}", expected="both factors", hint="save the adapter again"
            )
    a, b = factors["A"].float(), factors["B"].float()
    rank, scale = scaling.of(module)
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterError(
            f"{folder}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}",
            expected=f"rank {rank}, which {CONFIG_NAME} gives",
            hint="save configuration and weights together again",
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise AdapterError(f"{folder}: {module} has weights that are not finite", hint="train the adapter again")
    return LowRank(a.contiguous(), (b * scale).contiguous())

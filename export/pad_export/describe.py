"""The manifest of what an export wrote."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from pad_export.graph.matrix import Storage
from pad_export.limits import Limits
from pad_export.plan import Plan
from pad_export.read.model_name import repository_name
from pad_export.trunk import Trunk
from pad_runtime.bundle import contract
from pad_runtime.bundle.file_info import FileInfo, describe_file
from pad_runtime.bundle.manifest import GraphInfo, Manifest, TokenizerInfo, TrunkInfo

_PACKAGES = ("pad-rt", "onnx", "torch", "transformers", "peft")


def describe_bundle(
    folder: Path, plan: Plan, storage: Storage, limits: Limits, graphs: Mapping[str, GraphInfo]
) -> Manifest:
    """Describe a folder that holds all files of a bundle but the manifest."""
    base_path, tokenizer = plan.base.checkpoint.path, plan.base.checkpoint.tokenizer.info
    return Manifest(
        format=contract.FORMAT,
        format_version=contract.FORMAT_VERSION,
        versions={name: version(name) for name in _PACKAGES},
        base=repository_name(base_path) or base_path.resolve().name,
        topology=plan.topology,
        reference=plan.reference,
        precision=storage.precision,
        float_type=storage.float_type,
        dialect=storage.dialect,
        vocab_size=plan.base.spec.vocab_size,
        max_length=limits.max_length,
        max_batch=limits.max_batch,
        max_top_k=limits.max_top_k,
        eos_token_ids=list(plan.base.checkpoint.eos_token_ids),
        trunks=[_describe_trunk(trunk) for trunk in plan.trunks],
        persrms=list(plan.persrms),
        graphs=dict(graphs),
        tokenizer=TokenizerInfo(
            file="tokenizer.json",
            chat_template="chat_template.jinja" if tokenizer.chat_template else None,
            bos_token=None if tokenizer.bos_id is None else tokenizer.bos_token,
            eos_token=None if tokenizer.eos_id is None else tokenizer.eos_token,
        ),
        files=_describe_files(folder),
    )


def _describe_trunk(trunk: Trunk) -> TrunkInfo:
    spec = trunk.spec
    return TrunkInfo(
        name=trunk.name,
        model_type=spec.model_type,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        prompt_layers=trunk.prompt_layers,
        lora_sites={site: list(trunk.site_sizes(site)) for site in trunk.lora_sites},
        has_features=trunk.has_features,
        mixes_heads=not spec.logit_softcap,
    )


def _describe_files(folder: Path) -> dict[str, FileInfo]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): describe_file(path) for path in files}

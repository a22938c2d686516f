"""The export plan: which weights become which trunk, and on which trunk each PersRM's rows run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pad_export.backbone import find_backbone, trust_notes
from pad_export.options import TopologyChoice
from pad_export.read.adapter import LoraAdapter, check_fits
from pad_export.read.checkpoint import Checkpoint, OpenWeights, open_checkpoint
from pad_export.read.persrm import PROMPT_TEMPLATE, PersRM, check_feature_head_fits, read_persrm
from pad_export.read.safetensors_file import open_safetensors
from pad_export.read.spec import SITE_MODULES, DecoderSpec, read_spec
from pad_export.shared_vocabulary import check_vocabulary
from pad_export.trunk import Trunk
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import PersRMInfo, Reference, Topology
from pad_runtime.errors import OptionError

REWARD_TRUNK = "reward"
REFERENCE_TRUNK = "reference"
CONTRAST = "contrast"  # reward of a bundle without a PersRM: the base with the preference in its prompt


@dataclass(frozen=True)
class Plan:
    """What to write.

    `persrms[i]` describes `sources[i]`; the contrast preset has a description and no source. `notes` are what was taken
    for granted and the user should know.
    """

    topology: Topology
    reference: Reference
    trunks: tuple[Trunk, ...]
    persrms: tuple[PersRMInfo, ...]
    sources: tuple[PersRM, ...]
    notes: tuple[str, ...] = ()

    @property
    def base(self) -> Trunk:
        """The trunk of the base model."""
        return self.trunks[0]

    def trunk(self, name: str) -> Trunk:
        """The trunk of that name."""
        return next(trunk for trunk in self.trunks if trunk.name == name)


def make_plan(
    base: Path,
    persrms: Sequence[Path],
    *,
    topology: TopologyChoice = "auto",
    reference: Reference = "base",
    backbone: Path | None = None,
    open_weights: OpenWeights = open_safetensors,
) -> Plan:
    """Read base and PersRMs, and decide.

    Args:
        base: Hugging Face folder or GGUF file.
        persrms: LoRA adapter folders, or one merged checkpoint; none gives the contrast preset.
        topology: "shared" runs adapters as rows on the base's own weights; "pair" gives the PersRM a trunk of its own;
            "auto" shares where the adapters were trained on the given base.
        reference: what phi is measured against: the base row, or a row of the PersRM's own frozen backbone.
        backbone: the model that the PersRMs were trained on, where it is not the base and their config does not lead
            to it.
        open_weights: gives the weights of a Hugging Face folder.

    Raises:
        CheckpointError, AdapterError, TokenizerMismatchError, OptionError: what cannot be exported, and the next step.
    """
    opened = partial(open_checkpoint, open_weights=open_weights)
    base_checkpoint = opened(base)
    base_trunk = _plain(contract.BASE_TRUNK, base_checkpoint)
    sources = tuple(read_persrm(path, open_weights) for path in persrms)
    _check_names(sources)
    if not sources:
        return _contrast(base_trunk, topology, reference, backbone)
    if any(source.checkpoint for source in sources):
        return _merged_pair(base_trunk, sources, topology, reference, backbone, opened)
    adapters = [_adapter(source) for source in sources]
    backbone_path = find_backbone(base_checkpoint, adapters, topology, backbone)
    if backbone_path is None and topology != "pair":
        return replace(_shared(base_trunk, sources, reference), notes=trust_notes(base_checkpoint, adapters))
    if topology == "shared":
        raise OptionError(f"topology shared with --backbone {backbone}", expected="the base itself as the backbone")
    checkpoint = opened(backbone_path or base)
    notes = trust_notes(checkpoint, adapters) if backbone_path is None else ()
    notes += _template_notes(base_checkpoint, checkpoint)
    return replace(_adapter_pair(base_trunk, sources, reference, checkpoint), notes=notes)


def _contrast(base: Trunk, topology: str, reference: Reference, backbone: Path | None) -> Plan:
    """No PersRM: the base against itself with the preference in its prompt, on one trunk."""
    for option, given in (("--topology pair", topology == "pair"), ("--backbone", backbone is not None)):
        if given:
            raise OptionError(f"{option} without a PersRM", hint="pass --persrm DIR, or leave the option out")
    if reference != "base":
        raise OptionError("--reference backbone without a PersRM", expected="--reference base")
    info = PersRMInfo(CONTRAST, base.name, None, None, [CONTRAST], [1.0], None, PROMPT_TEMPLATE)
    return Plan("shared", reference, (base,), (info,), ())


def _shared(base: Trunk, sources: tuple[PersRM, ...], reference: Reference) -> Plan:
    """Adapters as rows on the base's own trunk."""
    trunk = _with_adapters(base.name, base.checkpoint, base.spec, sources)
    reference_trunk = base.name if reference == "backbone" else None
    infos = tuple(_describe(source, base.name, reference_trunk, adapter=True) for source in sources)
    return Plan("shared", reference, (trunk,), infos, sources)


def _adapter_pair(base: Trunk, sources: tuple[PersRM, ...], reference: Reference, backbone: Checkpoint) -> Plan:
    """Adapters on another backbone: merged, unless several share it or its own row is wanted as the reference."""
    check_vocabulary(base, backbone)
    spec = _spec(backbone)
    as_rows = len(sources) > 1 or reference == "backbone"
    if as_rows:
        reward = _with_adapters(REWARD_TRUNK, backbone, spec, sources)
    else:
        _check_source(sources[0], backbone)
        has_features = sources[0].feature_head is not None
        reward = _plain(REWARD_TRUNK, backbone, merged=sources[0].adapter, has_features=has_features)
    reference_trunk = REWARD_TRUNK if reference == "backbone" else None
    infos = tuple(_describe(source, REWARD_TRUNK, reference_trunk, adapter=as_rows) for source in sources)
    return Plan("pair", reference, (base, reward), infos, sources)


def _merged_pair(
    base: Trunk,
    sources: tuple[PersRM, ...],
    topology: str,
    reference: Reference,
    backbone: Path | None,
    opened: Callable[[Path], Checkpoint],
) -> Plan:
    """A merged PersRM checkpoint, and its backbone as a third trunk where that is the reference."""
    source = sources[0]
    if len(sources) > 1 or source.checkpoint is None:
        raise OptionError(
            f"{len(sources)} PersRMs, a merged checkpoint among them",
            expected="one merged checkpoint, or any number of LoRA adapters on one backbone",
        )
    if topology == "shared":
        raise OptionError(
            f"--topology shared with the merged checkpoint {source.checkpoint.path}",
            expected="a LoRA adapter folder",
            hint="pass --topology pair or auto",
        )
    check_vocabulary(base, source.checkpoint)
    reward = _plain(REWARD_TRUNK, source.checkpoint, has_features=source.feature_head is not None)
    trunks = [base, reward]
    if reference == "backbone":
        if backbone is None:
            raise OptionError(
                f"--reference backbone with the merged checkpoint {source.checkpoint.path}",
                expected="its un-tuned backbone",
                hint="pass --backbone DIR, or --reference base",
            )
        checkpoint = opened(backbone)
        check_vocabulary(base, checkpoint)
        trunks.append(_plain(REFERENCE_TRUNK, checkpoint))
    elif backbone is not None:
        raise OptionError("--backbone with a merged checkpoint", expected="--reference backbone beside it")
    info = _describe(source, REWARD_TRUNK, REFERENCE_TRUNK if reference == "backbone" else None, adapter=False)
    notes = _template_notes(base.checkpoint, source.checkpoint)
    return Plan("pair", reference, tuple(trunks), (info,), sources, notes)


# -- pieces ---------------------------------------------------------------------------------------------------------


def _spec(checkpoint: Checkpoint) -> DecoderSpec:
    return read_spec(checkpoint.config, tied=checkpoint.tied)


def _plain(
    name: str, checkpoint: Checkpoint, *, merged: LoraAdapter | None = None, has_features: bool = False
) -> Trunk:
    """A trunk without adapters, all of whose layers run by prompt."""
    spec = _spec(checkpoint)
    return Trunk(name, checkpoint, spec, spec.num_layers, merged=merged, has_features=has_features)


def _with_adapters(name: str, checkpoint: Checkpoint, spec: DecoderSpec, sources: tuple[PersRM, ...]) -> Trunk:
    """A trunk whose adapters stay inputs, at every site that any of them touches."""
    touched: set[str] = set()
    layers = {spec.num_layers}
    for source in sources:
        _check_source(source, checkpoint)
        modules = {".".join(module.split(".")[-2:]) for module in _adapter(source).delta}
        touched |= {site for site, names in SITE_MODULES.items() if modules & set(names)}
        layers |= {int(module.split(".")[2]) for module in _adapter(source).delta}  # model.layers.{i}.
    return Trunk(
        name,
        checkpoint,
        spec,
        prompt_layers=min(layers),
        lora_sites=tuple(site for site in contract.LORA_SITES if site in touched),
        has_features=any(source.feature_head for source in sources),
    )


def _adapter(source: PersRM) -> LoraAdapter:
    assert source.adapter is not None  # callers hold adapters only
    return source.adapter


def _check_source(source: PersRM, checkpoint: Checkpoint) -> None:
    check_fits(_adapter(source), checkpoint)
    check_feature_head_fits(source.feature_head, checkpoint, path=_adapter(source).path)


def _describe(source: PersRM, trunk: str, reference_trunk: str | None, *, adapter: bool) -> PersRMInfo:
    return PersRMInfo(
        name=source.name,
        trunk=trunk,
        adapter=f"adapters/{source.name}.safetensors" if adapter else None,
        feature_head=f"heads/{source.name}.safetensors" if source.feature_head else None,
        features=list(source.features),
        default_weights=list(source.default_weights),
        reference_trunk=reference_trunk,
        prompt_template=source.prompt_template,
    )


def _check_names(sources: tuple[PersRM, ...]) -> None:
    """Refuse equal names of PersRMs or features: users select by them."""
    for what, names in (
        ("PersRMs", [source.name for source in sources]),
        ("features", [feature for source in sources for feature in source.features]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise OptionError(
                f"two {what} are called '{twice[0]}'",
                expected="different names",
                hint='rename the folder, or set "name" and "features" in its pad_persrm.json',
            )


def _template_notes(base: Checkpoint, other: Checkpoint) -> tuple[str, ...]:
    """A note if the PersRM has another chat template than the base, whose template is used for both."""
    if base.tokenizer.info.chat_template == other.tokenizer.info.chat_template:
        return ()
    return (f"{other.path} has another chat template than the base; its rows are given the base's",)

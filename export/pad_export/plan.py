"""The export plan: which weights become which trunk, and on which trunk each PersRM's rows run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pad_export.read.adapter import LoraAdapter, check_fits
from pad_export.read.checkpoint import Checkpoint, open_checkpoint
from pad_export.read.model_name import is_model_name, path_names, same_name
from pad_export.read.persrm import PROMPT_TEMPLATE, PersRM, check_head_fits, read_persrm
from pad_export.read.spec import SITE_MODULES, DecoderSpec, read_spec
from pad_export.read.tokenizer.checkpoint_tokenizer import CheckpointTokenizer, has_tokenizer, load_folder_tokenizer
from pad_export.read.tokenizer.sentencepiece_vocabulary import SPACE
from pad_export.trunk import Trunk
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import PersRMInfo, Reference, Topology
from pad_runtime.errors import AdapterError, CheckpointError, OptionError, TokenizerMismatchError

REWARD_TRUNK = "reward"
REFERENCE_TRUNK = "reference"
_SHOWN = 100  # characters of a name
CONTRAST = "contrast"  # the reward of a bundle with no PersRM: the base itself, told the preference


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


def make_plan(
    base: Path,
    persrms: Sequence[Path],
    *,
    topology: Literal["auto", "shared", "pair"] = "auto",
    reference: Reference = "base",
    backbone: Path | None = None,
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

    Raises:
        CheckpointError, AdapterError, TokenizerMismatchError, OptionError: what cannot be exported, and the next step.
    """
    base_checkpoint = open_checkpoint(base)
    base_trunk = Trunk(contract.BASE_TRUNK, base_checkpoint, _spec(base_checkpoint))
    sources = tuple(read_persrm(path) for path in persrms)
    _check_names(sources)
    if not sources:
        return _contrast(base_trunk, topology, reference, backbone)
    if any(source.checkpoint for source in sources):
        return _merged_pair(base_trunk, sources, topology, reference, backbone)
    backbone_path = _find_backbone(base_checkpoint, sources, topology, backbone)
    if backbone_path is None and topology != "pair":
        return replace(_shared(base_trunk, sources, reference), notes=_same_base_notes(base_checkpoint, sources))
    if topology == "shared":
        raise OptionError(f"topology shared with --backbone {backbone}", expected="the base itself as the backbone")
    checkpoint = open_checkpoint(backbone_path or base)
    notes = _same_base_notes(checkpoint, sources) if backbone_path is None else ()
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
    _check_vocabulary(base, backbone)
    spec = _spec(backbone)
    as_rows = len(sources) > 1 or reference == "backbone"
    if as_rows:
        reward = _with_adapters(REWARD_TRUNK, backbone, spec, sources)
    else:
        _check_source(sources[0], backbone)
        has_features = sources[0].head is not None
        reward = Trunk(REWARD_TRUNK, backbone, spec, merged=sources[0].adapter, has_features=has_features)
    reference_trunk = REWARD_TRUNK if reference == "backbone" else None
    infos = tuple(_describe(source, REWARD_TRUNK, reference_trunk, adapter=as_rows) for source in sources)
    return Plan("pair", reference, (base, reward), infos, sources)


def _merged_pair(
    base: Trunk, sources: tuple[PersRM, ...], topology: str, reference: Reference, backbone: Path | None
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
    _check_vocabulary(base, source.checkpoint)
    reward = Trunk(REWARD_TRUNK, source.checkpoint, _spec(source.checkpoint), has_features=source.head is not None)
    trunks = [base, reward]
    if reference == "backbone":
        if backbone is None:
            raise OptionError(
                f"--reference backbone with the merged checkpoint {source.checkpoint.path}",
                expected="its un-tuned backbone",
                hint="pass --backbone DIR, or --reference base",
            )
        checkpoint = open_checkpoint(backbone)
        _check_vocabulary(base, checkpoint)
        trunks.append(Trunk(REFERENCE_TRUNK, checkpoint, _spec(checkpoint)))
    elif backbone is not None:
        raise OptionError("--backbone with a merged checkpoint", expected="--reference backbone beside it")
    info = _describe(source, REWARD_TRUNK, REFERENCE_TRUNK if reference == "backbone" else None, adapter=False)
    notes = _template_notes(base.checkpoint, source.checkpoint)
    return Plan("pair", reference, tuple(trunks), (info,), sources, notes)


# -- pieces ---------------------------------------------------------------------------------------------------------


def _spec(checkpoint: Checkpoint) -> DecoderSpec:
    return read_spec(checkpoint.config, tied=checkpoint.tied)


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
        lora_sites=tuple(site for site in contract.LORA_SITES if site in touched),
        first_adapted=min(layers),
        has_features=any(source.head for source in sources),
    )


def _adapter(source: PersRM) -> LoraAdapter:
    assert source.adapter is not None  # callers hold adapters only
    return source.adapter


def _check_source(source: PersRM, checkpoint: Checkpoint) -> None:
    check_fits(_adapter(source), checkpoint)
    check_head_fits(source.head, checkpoint, path=_adapter(source).path)


def _describe(source: PersRM, trunk: str, reference_trunk: str | None, *, adapter: bool) -> PersRMInfo:
    return PersRMInfo(
        name=source.name,
        trunk=trunk,
        adapter=f"adapters/{source.name}.safetensors" if adapter else None,
        head=f"heads/{source.name}.safetensors" if source.head else None,
        features=list(source.features),
        default_weights=list(source.default_weights),
        reference_trunk=reference_trunk,
        prompt_template=source.prompt_template,
    )


def _check_names(sources: tuple[PersRM, ...]) -> None:
    """Names and features are what a user calls on, so each must mean one thing."""
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


def _check_vocabulary(base: Trunk, other: Checkpoint) -> None:
    """A candidate id must mean the same token to both models, and have a row in both heads."""
    ours = _vocabulary(base.checkpoint, base.spec.vocab_size)
    theirs = _vocabulary(other)
    different = sum(theirs.get(token) != index for token, index in ours.items())
    if different:
        raise TokenizerMismatchError(
            f"{other.path} differs from the base's tokenizer in {different} of {len(ours)} tokens",
            expected="a PersRM with the base's own tokenizer",
            hint="candidates are compared by token id, so train the PersRM on a model with that tokenizer",
        )
    if other.config.vocab_size < base.spec.vocab_size:
        named = max(ours.values(), default=-1) >= other.config.vocab_size  # new rows would be random ones
        raise CheckpointError(
            f"{other.path} has {other.config.vocab_size} rows in its head",
            expected=f"at least the base's {base.spec.vocab_size}",
            hint="give one that has a row for every token"
            if named
            else "resize its embeddings with resize_token_embeddings: the rows that it lacks are of no token",
        )


def _vocabulary(tokenizer: Checkpoint | CheckpointTokenizer, num_rows: float = math.inf) -> dict[str, int]:
    """Ids of the tokens that have a row. GGUF files write the spaces of some sentencepiece tokens as spaces."""
    return {token.replace(" ", SPACE): index for token, index in tokenizer.vocabulary().items() if index < num_rows}


def _find_backbone(base: Checkpoint, sources: tuple[PersRM, ...], topology: str, backbone: Path | None) -> Path | None:
    """Where the adapters' backbone is: None for the base itself.

    An adapter names its base and does not hold it. A name that is a folder here is that folder; any other is the given
    base where that is called so (`_is_called`); an adapter that names nothing is of the given base, if it fits it.
    """
    if backbone is not None:
        return None if _same_file(backbone, base.path) else backbone
    if topology == "shared":
        return None
    found = {_resolve(source, base) for source in sources}
    if len(found) > 1:
        raise AdapterError("the adapters were trained on different models", expected="adapters on one backbone")
    return found.pop()


def _resolve(source: PersRM, base: Checkpoint) -> Path | None:
    adapter = _adapter(source)
    if not adapter.base_name:
        _check_own_tokenizer(adapter, base)
        return None
    if _exists(adapter.base_name):
        return None if _same_file(Path(adapter.base_name), base.path) else Path(adapter.base_name)
    if _is_called(base, adapter.base_name):
        return None
    raise AdapterError(
        f"{adapter.path} was trained on '{_one_line(adapter.base_name)}', and {base.path} is not called so"
        + _called(base),
        expected=f"the base {base.path}",
        hint="pass --topology shared if that is the same model, or --backbone DIR with the one it was trained on",
    )


def _is_called(base: Checkpoint, name: str) -> bool:
    """Whether a checkpoint goes by a name: its path's or, where the path names no model, what it calls itself."""
    own = path_names(base.path)
    return same_name(name, own) or (not any(map(is_model_name, own)) and same_name(name, base.called))


def _called(base: Checkpoint) -> str:
    return f" (it calls itself '{_one_line(base.called[0])}')" if base.called else ""


def _one_line(name: str) -> str:
    """A name out of a file, which can hold anything, as a note may have it."""
    printable = "".join(filter(str.isprintable, " ".join(name.split())))
    return printable if len(printable) <= _SHOWN else f"{printable[:_SHOWN]}..."


def _check_own_tokenizer(adapter: LoraAdapter, base: Checkpoint) -> None:
    """An adapter that does not name its base often brings a tokenizer: the base's, which may have got more tokens."""
    if not has_tokenizer(adapter.path):
        return
    theirs = _vocabulary(load_folder_tokenizer(adapter.path, base.config.vocab_size))
    ours = _vocabulary(base, base.config.vocab_size)
    different = sum(theirs.get(token) != index for token, index in ours.items())
    if different:
        raise AdapterError(
            f"{adapter.path} does not say what it was trained on, and its tokenizer differs from that of {base.path} "
            f"in {different} tokens",
            expected=f"an adapter of {base.path}",
            hint="give the base it was trained on",
        )


def _same_base_notes(base: Checkpoint, sources: tuple[PersRM, ...]) -> tuple[str, ...]:
    """An adapter holds no weights of its base: that the given base is the one it names is taken on trust."""
    notes = []
    for adapter in map(_adapter, sources):
        name = adapter.base_name
        if not name:
            notes.append(f"{adapter.path} does not say what it was trained on; its modules and shapes fit {base.path}")
        elif not _exists(name) or not _same_file(Path(name), base.path):
            notes.append(
                f"taking {base.path}{_called(base)} for '{_one_line(name)}', which {adapter.path} was trained on"
            )
        if adapter.is_bare:
            notes.append(f"{adapter.path} was on a decoder without lm_head; taking it for a LoRA of {base.path}")
    return tuple(dict.fromkeys(notes))


def _template_notes(base: Checkpoint, other: Checkpoint) -> tuple[str, ...]:
    """Both models read prompts in the base's chat template."""
    if base.tokenizer.info.chat_template == other.tokenizer.info.chat_template:
        return ()
    return (f"{other.path} has another chat template than the base; its rows are given the base's",)


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.resolve() == other.resolve()


def _exists(name: str) -> bool:
    """Whether a name out of a file is a path here; one that no path can be (too long, a null character) is not."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False

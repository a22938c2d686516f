"""What must hold between the fields of a manifest: names that are used exist, and limits agree."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, TypeAlias

from pad_runtime.bundle import contract
from pad_runtime.bundle.checked_json import HINT
from pad_runtime.errors import BundleError

if TYPE_CHECKING:
    from pad_runtime.bundle.manifest import EngineInfo, Manifest, PersRMInfo, TrunkInfo

_PROFILE_AXES = (contract.SEQUENCES, contract.NEW_TOKENS)
_Rule: TypeAlias = tuple[bool, str, str]  # whether it holds, what is given, what is expected


def check_relations(manifest: Manifest) -> None:
    """Check every rule on a manifest whose fields have the right types.

    Raises:
        BundleError: the first rule that is broken.
    """
    for holds, given, expected in _rules(manifest):
        if not holds:
            raise BundleError(f"{contract.MANIFEST_FILE}: {given}", expected=expected, hint=HINT)


def _rules(manifest: Manifest) -> Iterator[_Rule]:
    """The rules in order; each is safe to evaluate if those before it hold."""
    trunks = {trunk.name: trunk for trunk in manifest.trunks}
    first = manifest.trunks[0].name if manifest.trunks else ""
    yield first == contract.BASE_TRUNK, f"the first trunk is '{first}'", f"'{contract.BASE_TRUNK}'"
    yield len(trunks) == len(manifest.trunks), "two trunks have one name", "a name for each"
    several = manifest.topology == "pair"
    yield several == (len(trunks) > 1), f"topology {manifest.topology} with {len(trunks)} trunks", "1 if shared"
    yield bool(manifest.persrms), "persrms is empty", "at least one reward"
    for what, name, known in _used_names(manifest):
        yield name in known, f"{what} is '{name}'", f"one of {', '.join(sorted(known)) or 'none'}"
    for what, value, most in _limits(manifest):
        yield value <= most, f"{what} is {value}", f"at most {most}"
    features = [feature for persrm in manifest.persrms for feature in persrm.features]
    yield len(set(features)) == len(features), "two features have one name", "a name for each"
    for persrm in manifest.persrms:
        yield from _persrm_rules(persrm, trunks[persrm.trunk], manifest.reference)
    for trunk in manifest.trunks:
        used = any(persrm.feature_head for persrm in manifest.persrms if persrm.trunk == trunk.name)
        yield used == trunk.has_features, f"trunk '{trunk.name}' has_features {trunk.has_features}", f"{used}"
        yield (
            trunk.num_heads % trunk.num_kv_heads == 0,
            f"trunk '{trunk.name}' has {trunk.num_heads} heads over {trunk.num_kv_heads} KV heads",
            "a multiple",
        )
    for engine in manifest.engines:
        yield from _engine_rules(engine)


def _used_names(manifest: Manifest) -> Iterator[tuple[str, str, Collection[str]]]:
    """Each use of a name: what uses it, the name, and the names that exist."""
    files = manifest.files
    # If the PersRMs have trunks of their own, only the base row runs on the base's trunk.
    trunks = {trunk.name for trunk in manifest.trunks[1:]} or {contract.BASE_TRUNK}
    for graph in (contract.STEP_GRAPH, contract.BASE_GRAPH, contract.SCORE_GRAPH):
        yield "a graph that every bundle has", graph, manifest.graphs
    for name, info in manifest.graphs.items():
        yield f"the file of graph '{name}'", info.file, files
    for engine in manifest.engines:
        yield "the graph of an engine", engine.graph, manifest.graphs
        yield "the file of an engine", engine.file, files
    yield "the tokenizer's file", manifest.tokenizer.file, files
    if manifest.tokenizer.chat_template is not None:
        yield "the chat template", manifest.tokenizer.chat_template, files
    for persrm in manifest.persrms:
        at = f"PersRM '{persrm.name}'"
        for what, given, known in (
            ("trunk", persrm.trunk, trunks),
            ("reference_trunk", persrm.reference_trunk, trunks),
            ("adapter", persrm.adapter, files.keys()),
            ("feature_head", persrm.feature_head, files.keys()),
        ):
            if given is not None:
                yield f"the {what} of {at}", given, known


def _limits(manifest: Manifest) -> Iterator[tuple[str, int, int]]:
    """Numbers, and the limits that other numbers set them."""
    yield "max_top_k", manifest.max_top_k, manifest.vocab_size
    yield "the largest of eos_token_ids", max(manifest.eos_token_ids, default=0), manifest.vocab_size - 1
    for trunk in manifest.trunks:
        yield f"prompt_layers of trunk '{trunk.name}'", trunk.prompt_layers, trunk.num_layers


def _persrm_rules(persrm: PersRMInfo, trunk: TrunkInfo, reference: str) -> Iterator[_Rule]:
    at, wants = f"PersRM '{persrm.name}'", "one" if trunk.lora_sites else "none"
    weights = len(persrm.default_weights)
    yield len(persrm.features) == weights, f"{at} has {weights} default_weights", f"{len(persrm.features)}"
    yield weights > 0, f"{at} has no features", "at least one"
    yield "{x}" in persrm.prompt_template, f"the prompt_template of {at} has no {{x}}", "a place for the prompt"
    adapter = f"adapter {persrm.adapter}" if persrm.adapter else "no adapter"
    yield bool(persrm.adapter) == bool(trunk.lora_sites), f"{at} has {adapter}", f"{wants} on trunk '{trunk.name}'"
    yield (
        (persrm.reference_trunk is not None) == (reference == "backbone"),
        f"{at} has the reference_trunk {persrm.reference_trunk}",
        f"what goes with the reference '{reference}'",
    )


def _engine_rules(engine: EngineInfo) -> Iterator[_Rule]:
    yield (
        list(engine.profiles) == list(contract.ENGINE_PROFILES),
        f"engine {engine.file} has the profiles {', '.join(engine.profiles) or 'none'}",
        " and ".join(contract.ENGINE_PROFILES),
    )
    for name, axes in engine.profiles.items():
        has_both = axes.keys() >= {*_PROFILE_AXES}
        yield has_both, f"profile {name} of {engine.file} lacks an axis", " and ".join(_PROFILE_AXES)

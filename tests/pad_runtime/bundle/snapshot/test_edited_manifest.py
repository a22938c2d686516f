"""Manifests that somebody edited, checksum and all: a reply or one PadError, whatever a field says."""

from __future__ import annotations

import collections
import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_rt import EncodedPrompt, GenerationConfig, Preference
from pad_rt.cli.info import BundleInfo
from pad_runtime.errors import PadError
from tests.support import tiny_bundles, tiny_models
from tests.support.error_checks import check_line, write_json

NUM_TRIES = 80  # of about 1,500 for each bundle
LIMITS = (0, 1, -1, 2**31 - 1, 2**31, 2**40, 2**63, 10**400, None)
WORDS = (
    "",
    "x",
    "\ud800",
    "../x",
    "/etc/passwd",
    "a\0b",
    "base",
    "reward",
    "backbone",
    "step.onnx",
    "pair",
    "int4",
    None,
)
KINDS: dict[str, dict[str, Any]] = {"shared": {}, "pair": {"topology": "pair", "reference": "backbone"}}


@pytest.fixture(scope="module", params=KINDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.make_family(tmp_path_factory.mktemp("edited"))
    tiny_models.make_head(folder / "one", 84, d=2, seed=9)
    persrms = [folder / "one", folder / "two"]
    return tiny_bundles.export(folder / "bundle", folder / "base", persrms, eos=(1,), **KINDS[request.param])


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value below a manifest and its path; of the long lists of names one in seven."""
    if at:
        yield at, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if not (at[:1] == ("graphs",) and isinstance(key, int) and key % 7):
            yield from leaves(item, (*at, key))


def others(value: Any) -> tuple[Any, ...]:
    """What may stand there instead."""
    if type(value) is bool:
        return (not value, 0, None)
    if isinstance(value, int):
        return (*LIMITS, value - 1, value + 1, 2 * value, float(value), str(value))
    if isinstance(value, float):
        return (-value, 1e300, float("nan"), *LIMITS)
    if isinstance(value, list):
        return ([], value * 2, value[::-1], {}, None)
    return ({}, [], None) if isinstance(value, dict) else WORDS


def reply(bundle: Path) -> list[tuple[int, ...]]:
    """Token ids of replies that call on every part of a bundle."""
    generator = tiny_bundles.load(bundle)
    assert BundleInfo.read(bundle).as_text()
    config, ids = GenerationConfig(max_new_tokens=3, top_k=4), EncodedPrompt([5, 6, 7], [8, 9])
    return [
        generator.generate(prompt, preference=preference, config=config).token_ids
        for prompt, preference in (
            (ids, Preference(weights={"one-0": 1.0})),
            (ids, Preference(weights={"two": 1.0})),
            ("the egg", "be kind"),
            ("the egg", None),
        )
    ]


def test_a_reply_or_one_error(bundle: Path) -> None:
    good = json.loads((bundle / "pad.json").read_text())
    expected, vocab_size = reply(bundle), good["vocab_size"]
    tries = [(at, new) for at, value in leaves(good) for new in others(value) if at[0] != "checksum"]
    counts: collections.Counter[str] = collections.Counter()
    for number in np.random.default_rng(7).choice(len(tries), NUM_TRIES, replace=False):
        at, new = tries[number]
        edited = copy.deepcopy(good)
        place = edited
        for key in at[:-1]:
            place = place[key]
        place[at[-1]] = new
        write_json(bundle / "pad.json", edited)
        try:
            with warnings.catch_warnings(action="ignore"):
                replies = reply(bundle)
            assert all(0 <= token < vocab_size for ids in replies for token in ids), (at, new)
            counts["same" if replies == expected else "other"] += 1
        except PadError as error:
            check_line(error)
            counts["refused"] += 1
    write_json(bundle / "pad.json", good)
    assert reply(bundle) == expected
    assert counts["refused"] > counts["same"] > counts["other"], counts

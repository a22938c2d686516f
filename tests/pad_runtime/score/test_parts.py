"""Replies cut into runs: every token once, in order, and within the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_runtime.bundle.manifest import Manifest, read_manifest
from pad_runtime.score.parts import Part, RunLimits, cut
from pad_runtime.score.request import RewardPrompt, ScoreRequest

NUM_HEADS = 6  # of the tiny bundle


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


def make_request(prompt: int, reply: int, rewards: Sequence[int]) -> ScoreRequest:
    return ScoreRequest((5,) * prompt, (6,) * reply, tuple(RewardPrompt(0, (7,) * length) for length in rewards))


lengths = st.integers(1, 40)
requests = st.lists(st.builds(make_request, lengths, st.integers(0, 40), st.lists(lengths, max_size=3)), max_size=8)


@settings(max_examples=200, deadline=None)
@given(requests=requests, positions=st.integers(1, 400), tokens=st.integers(1, 60), top_k=st.integers(1, 500))
def test_every_token_is_scored_once_and_in_order(
    manifest: Manifest, requests: list[ScoreRequest], positions: int, tokens: int, top_k: int
) -> None:
    limits = RunLimits(positions=positions, floats=tokens * manifest.vocab_size)
    runs = list(cut(requests, manifest, top_k=top_k, limits=limits))
    scored = [(part.number, token) for run in runs for part in run for token in range(part.start, part.stop)]
    assert [token for token in scored if token[0] == 0] == sorted(token for token in scored if token[0] == 0)
    expected = [(number, token) for number, request in enumerate(requests) for token in range(len(request.reply))]
    assert sorted(scored) == expected
    for run in runs:
        assert len(run) == 1 or num_positions(run) <= limits.positions
        assert len(run) == 1 or num_positions(run) * longest(run) * NUM_HEADS <= limits.floats
        assert sum(map(len, run)) <= max(1, tokens)


def lengths_of(run: Sequence[Part]) -> list[int]:
    """Of the texts of a run's rows; the tiny bundle's reference is the base, so it has no row."""
    return [
        len(part.text(prompt))
        for part in run
        for prompt in (part.request.prompt, *(reward.prompt for reward in part.request.rewards))
    ]


def longest(run: Sequence[Part]) -> int:
    return max(lengths_of(run))


def num_positions(run: Sequence[Part]) -> int:
    """Tokens of a run's rows with their padding."""
    return len(lengths_of(run)) * longest(run)


def test_short_replies_share_a_run_and_long_ones_are_cut(manifest: Manifest) -> None:
    (run,) = cut([make_request(4, 5, [6])] * 3, manifest, top_k=4, limits=RunLimits())
    assert [(part.number, part.start, part.stop) for part in run] == [(0, 0, 5), (1, 0, 5), (2, 0, 5)]
    small = RunLimits(floats=2 * 2 * manifest.vocab_size)  # logits and their softmax
    runs = list(cut([make_request(4, 5, [])], manifest, top_k=4, limits=small))
    assert [(part.start, part.stop) for run in runs for part in run] == [(0, 2), (2, 4), (4, 5)]
    assert [part.text((1, 2)) for run in runs for part in run] == [(1, 2, 6), (1, 2, 6, 6, 6), (1, 2, 6, 6, 6, 6)]


def test_candidates_and_the_rows_of_references_count(manifest: Manifest) -> None:
    """What is looked up for each reading takes memory too, and a backbone's row is one more."""
    request = make_request(4, 40, [6])
    limits = RunLimits(floats=40 * manifest.vocab_size)
    few, many = (list(cut([request], manifest, top_k=top_k, limits=limits)) for top_k in (1, 300))
    assert len(few) < len(many)
    persrm = replace(manifest.persrms[0], reference_trunk="base")
    backbone = replace(manifest, persrms=[persrm])
    four = [make_request(4, 5, [6])] * 2
    three_rows = RunLimits(positions=4 * 10)
    assert [len(list(cut(four, each, top_k=1, limits=three_rows))) for each in (manifest, backbone)] == [1, 2]

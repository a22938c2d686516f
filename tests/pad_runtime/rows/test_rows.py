"""Rows and coefficients against the sums they stand for, by hand."""

from __future__ import annotations

import dataclasses
import gc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pad_rt import Generator, PadError, Preference
from pad_runtime.bundle.manifest import Manifest, PersRMInfo, read_manifest
from pad_runtime.devices.ids import HostIds
from pad_runtime.errors import PreferenceError
from pad_runtime.rows.row import Reward, Row, pad_rows, plan_rows

BASE, WARM, DRY = (1, 2), (3, 4, 5), (6,)


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


def with_persrms(manifest: Manifest, reference_trunk: str | None, *, head: str | None = None) -> Manifest:
    """Two PersRMs on the base's trunk."""
    first = dataclasses.replace(manifest.persrms[0], reference_trunk=reference_trunk, head=head)
    return dataclasses.replace(manifest, persrms=[first, dataclasses.replace(first, name="dry", features=["dry"])])


def test_reference_base_is_the_blended_form(manifest: Manifest) -> None:
    rows = plan_rows(
        with_persrms(manifest, None), BASE, [Reward(0, (0.5,), 1.0, WARM), Reward(1, (-1.0,), 3.0, DRY)], 2.0
    )
    assert rows == [[Row(BASE, 1 - 2 * 0.5 + 2 * 3, None, ()), Row(WARM, 1.0, 0, ()), Row(DRY, -6.0, 1, ())]]


def test_reference_backbone_is_the_log_ratio_form(manifest: Manifest) -> None:
    rows = plan_rows(with_persrms(manifest, "base"), BASE, [Reward(0, (0.5,), 1.0, WARM)], 2.0)
    assert rows == [[Row(BASE, 1.0, None, ()), Row(WARM, 1.0, 0, ()), Row(WARM, -1.0, None, ())]]


def test_a_head_mixes_its_weights_and_the_reference_their_sum(manifest: Manifest) -> None:
    rows = plan_rows(with_persrms(manifest, None, head="x"), BASE, [Reward(0, (0.5, -2.0), 3.0, WARM)], 2.0)
    assert rows == [[Row(BASE, 1.0 + 6 * 1.5, None, ()), Row(WARM, 6.0, 0, (0.5, -2.0))]]


def test_rows_that_compute_the_same_are_one(manifest: Manifest) -> None:
    both = with_persrms(manifest, "base")
    rows = plan_rows(both, BASE, [Reward(0, (1.0,), 1.0, WARM), Reward(1, (1.0,), 0.5, WARM)], 1.0)
    assert rows == [[Row(BASE, 1.0, None, ()), Row(WARM, 1.0, 0, ()), Row(WARM, 0.5, 1, ()), Row(WARM, -1.5, None, ())]]
    seen = plan_rows(both, WARM, [Reward(0, (1.0,), 1.0, WARM)], 1.0)  # the base reads the preference too
    assert seen == [[Row(WARM, 0.0, None, ()), Row(WARM, 1.0, 0, ())]]
    twice = plan_rows(both, BASE, [Reward(0, (1.0,), 1.0, WARM), Reward(0, (1.0,), -0.25, WARM)], 1.0)
    assert twice == [[Row(BASE, 1.0, None, ()), Row(WARM, 0.75, 0, ()), Row(WARM, -0.75, None, ())]]


def test_coefficients_always_sum_to_one(manifest: Manifest) -> None:
    """What makes the normalisers of every softmax drop out."""
    rewards = [Reward(0, (0.7,), 1.3, WARM), Reward(1, (-2.0,), 0.4, DRY)]
    for reference in (None, "base"):
        rows = plan_rows(with_persrms(manifest, reference), BASE, rewards, 1.7)
        assert sum(row.coefficient for trunk in rows for row in trunk) == pytest.approx(1.0)


def test_padding_rows_count_nothing(manifest: Manifest) -> None:
    alone = plan_rows(manifest, BASE, [], 1.0)
    guided = plan_rows(manifest, BASE, [Reward(0, (1.0,), 1.0, WARM)], 1.0)
    padded = pad_rows([alone, guided])
    assert padded[1] == guided
    assert padded[0][0][0] == alone[0][0]
    assert [row.coefficient for row in padded[0][0][1:]] == [0.0]
    assert [len(rows[0]) for rows in padded] == [2, 2]


def test_words_go_to_the_first_persrm_that_reads_words(tiny_bundle: Path) -> None:
    generator = Generator.load(tiny_bundle)
    wordless = PersRMInfo(**{**dataclasses.asdict(generator.manifest.persrms[0]), "prompt_template": "Q: {x}"})
    reader = dataclasses.replace(generator.manifest.persrms[0], name="reader", features=["reader"])
    generator._planner._manifest = dataclasses.replace(generator.manifest, persrms=[wordless, reader])
    plan = partial(generator._planner.plan, template_args={})
    rows = plan("hi", "be kind", beta=1.0, base_sees_preference=False)
    assert rows[0][1].persrm == 1
    weights = Preference(weights={wordless.features[0]: 1.0})
    rows = plan("hi", weights, beta=1.0, base_sees_preference=False)
    assert rows[0][1].persrm == 0
    assert list(rows[0][1].prompt) == generator._planner._encoder.encode("Q: hi")
    both = [(weights, 1.0), ("be kind", 1.0)]
    rows = plan("hi", both, beta=1.0, base_sees_preference=True)
    assert rows[0][0].prompt == plan("hi", "be kind", beta=1.0, base_sees_preference=False)[0][1].prompt
    with pytest.raises(PreferenceError, match="which was trained without; expected weights for"):
        plan("hi", Preference("be kind", {wordless.features[0]: 1.0}), beta=1.0, base_sees_preference=False)


def test_options_may_be_a_mapping(tiny_bundle: Path) -> None:
    generator = Generator.load(tiny_bundle)
    named = generator.generate("hi", preference="be kind", config={"max_new_tokens": 3, "top_k": 4})
    assert len(named.token_ids) <= 3
    for wrong in ({"topk": 3}, 3, [("top_k", 3)]):
        with pytest.raises(PadError, match=r"top_k|a GenerationConfig or a mapping"):
            generator.generate("hi", config=wrong)  # type: ignore[arg-type]


def test_a_view_of_the_ids_outlives_its_step() -> None:
    ids = HostIds(2)
    buffer, view = ids.buffer, ids.take()
    buffer.write(np.array([13, 14]))
    assert list(view) == [13, 14]
    del buffer, ids
    gc.collect()
    scratch = [np.full(2, 77) for _ in range(1000)]
    assert list(view) == [13, 14]
    del scratch


@pytest.mark.parametrize("scales", [(1e10, -1e10), (1e10, 1.0), (1.0, 1e10)])
def test_strengths_that_float32_cannot_hold_are_refused(tiny_bundle: Path, scales: tuple[float, float]) -> None:
    """Infinite, or NaN where two infinite rows meet, wherever they stand."""
    generator = Generator.load(tiny_bundle)
    with pytest.raises(PreferenceError, match=r"strength (inf|-inf|nan); expected at most"):
        generator.generate("hi", preference=[("a", scales[0]), ("a", scales[1])], config={"beta": 1e300})

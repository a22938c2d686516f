"""Rows, readings and coefficients against the sums they stand for, by hand."""

from __future__ import annotations

import dataclasses
import gc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pad_rt import Generator, PadError, Preference
from pad_rt.planner import RowPlanner
from pad_rt.text.prompt import PromptEncoder
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle.manifest import Manifest, PersRMInfo, read_manifest
from pad_runtime.devices.ids import HostIds
from pad_runtime.errors import PreferenceError
from pad_runtime.rows.plan import Reward, RowPlan, plan_rows
from pad_runtime.rows.row import Reading, Row
from pad_runtime.rows.sequence import Sampling

BASE, WARM, DRY = (1, 2), (3, 4, 5), (6,)


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


def with_persrms(
    manifest: Manifest, reference_trunk: str | None, *, head: str | None = None, mixes_heads: bool = True
) -> Manifest:
    """Two PersRMs on the base's trunk."""
    first = dataclasses.replace(manifest.persrms[0], reference_trunk=reference_trunk, feature_head=head)
    (trunk,) = manifest.trunks
    trunk = dataclasses.replace(trunk, has_features=head is not None, mixes_heads=mixes_heads)
    persrms = [first, dataclasses.replace(first, name="dry", features=["dry"])]
    return dataclasses.replace(manifest, persrms=persrms, trunks=[trunk])


def test_without_a_reward_there_is_the_base_alone(manifest: Manifest) -> None:
    assert plan_rows(manifest, BASE, [], 2.0) == RowPlan((Row(0, 0),), (Reading(0, (), 1.0),), (BASE,))


def test_reference_base_is_the_blended_form(manifest: Manifest) -> None:
    rewards = [Reward(0, (0.5,), 1.0, WARM), Reward(1, (-1.0,), 3.0, DRY)]
    assert plan_rows(with_persrms(manifest, None), BASE, rewards, 2.0) == RowPlan(
        rows=(Row(0, 0), Row(0, 1, 0), Row(0, 2, 1)),
        readings=(Reading(0, (), 1 - 2 * 0.5 + 2 * 3), Reading(1, (), 1.0), Reading(2, (), -6.0)),
        prompts=(BASE, WARM, DRY),
    )


def test_reference_backbone_is_the_log_ratio_form(manifest: Manifest) -> None:
    assert plan_rows(with_persrms(manifest, "base"), BASE, [Reward(0, (0.5,), 1.0, WARM)], 2.0) == RowPlan(
        rows=(Row(0, 0), Row(0, 1, 0), Row(0, 1)),
        readings=(Reading(0, (), 1.0), Reading(1, (), 1.0), Reading(2, (), -1.0)),
        prompts=(BASE, WARM),
    )


def test_a_head_mixes_its_weights_and_the_reference_their_sum(manifest: Manifest) -> None:
    plan = plan_rows(with_persrms(manifest, None, head="x"), BASE, [Reward(0, (0.5, -2.0), 3.0, WARM)], 2.0)
    assert plan.rows == (Row(0, 0), Row(0, 1, 0))
    assert plan.readings == (Reading(0, (), 1.0 + 6 * 1.5), Reading(1, (0.5, -2.0), 6.0))


def test_rows_that_compute_the_same_are_one(manifest: Manifest) -> None:
    both = with_persrms(manifest, "base")
    plan = plan_rows(both, BASE, [Reward(0, (1.0,), 1.0, WARM), Reward(1, (1.0,), 0.5, WARM)], 1.0)
    assert plan.rows == (Row(0, 0), Row(0, 1, 0), Row(0, 1, 1), Row(0, 1))
    assert [reading.coefficient for reading in plan.readings] == [1.0, 1.0, 0.5, -1.5]
    seen = plan_rows(both, WARM, [Reward(0, (1.0,), 1.0, WARM)], 1.0)  # the base reads the preference too
    assert seen == RowPlan((Row(0, 0), Row(0, 0, 0)), (Reading(0, (), 0.0), Reading(1, (), 1.0)), (WARM,))
    twice = plan_rows(both, BASE, [Reward(0, (1.0,), 1.0, WARM), Reward(0, (1.0,), -0.25, WARM)], 1.0)
    assert twice.rows == (Row(0, 0), Row(0, 1, 0), Row(0, 1))
    assert twice.readings == (Reading(0, (), 1.0), Reading(1, (), 0.75), Reading(2, (), -0.75))


def test_a_trunk_of_its_own_has_its_own_rows(manifest: Manifest) -> None:
    """The reward's and its frozen backbone's, of the same prompt; the base's trunk has the base alone."""
    (trunk,) = manifest.trunks
    persrm = dataclasses.replace(manifest.persrms[0], trunk="reward", reference_trunk="reward")
    trunks = [trunk, dataclasses.replace(trunk, name="reward")]
    plan = plan_rows(
        dataclasses.replace(manifest, trunks=trunks, persrms=[persrm]), BASE, [Reward(0, (1.0,), 1.0, WARM)], 0.5
    )
    assert plan.rows == (Row(0, 0), Row(1, 1, 0), Row(1, 1))
    assert [reading.coefficient for reading in plan.readings] == [1.0, 0.5, -0.5]
    sequence = plan.sequence(sampling=Sampling(top_k=4))
    assert [sequence.rows_on(trunk) for trunk in (0, 1)] == [(0,), (1, 2)]
    assert [sequence.prompts_on(trunk) for trunk in (0, 1)] == [(0,), (1,)]
    assert (sequence.num_prompts, sequence.is_plain, plan.longest) == (2, False, 3)


# Weights over three features of one PersRM, and each preference's own weight.
PEOPLE = [((1.0, -0.5, 0.0), 1.0), ((0.0, 2.0, 0.25), -0.5), ((0.5, 0.5, 0.5), 0.75), ((-1.0, 0.0, 3.0), 0.1)] * 2


def features(manifest: Manifest, *, mixes_heads: bool = True, reference_trunk: str | None = None) -> Manifest:
    both = with_persrms(manifest, reference_trunk, head="x", mixes_heads=mixes_heads)
    three = dataclasses.replace(both.persrms[0], features=["a", "b", "c"], default_weights=[1.0] * 3)
    return dataclasses.replace(both, persrms=[three])


def scores_of(plan: RowPlan, logits: dict[Row, np.ndarray]) -> np.ndarray:
    """By the definition of a reading: logits of a row [1 + features, V], the row's own first."""
    return sum(
        reading.coefficient * (np.array(reading.weights) @ logits[plan.rows[reading.row]][1:])
        if reading.weights
        else reading.coefficient * logits[plan.rows[reading.row]][0]
        for reading in plan.readings
    )


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("mixes_heads", [True, False])
def test_preferences_by_weights_are_one_row(manifest: Manifest, count: int, mixes_heads: bool) -> None:
    """And one reading of it, where logits are linear in the head: a capped family reads each by itself."""
    beta = 1.5
    rewards = [Reward(0, weights, scale, WARM) for weights, scale in PEOPLE[:count]]
    plan = plan_rows(features(manifest, mixes_heads=mixes_heads), BASE, rewards, beta)
    assert plan.rows == (Row(0, 0), Row(0, 1, 0))
    distinct = len(dict.fromkeys(weights for weights, _ in PEOPLE[:count]))
    assert len(plan.readings) == 1 + (1 if mixes_heads else distinct)
    # The sum by hand: z + beta * sum of scale * w_i * (z_persrm,i - z).
    z, z_persrm = np.random.default_rng(0).normal(size=(2, 4, 9))
    expected = z[0].copy()
    for weights, scale in PEOPLE[:count]:
        for feature, weight in enumerate(weights):
            expected += beta * scale * weight * (z_persrm[1 + feature] - z[0])
    logits = {Row(0, 0): z, Row(0, 1, 0): z_persrm}
    np.testing.assert_allclose(scores_of(plan, logits), expected, rtol=1e-12, atol=1e-12)
    wrong = dataclasses.replace(plan, readings=plan.readings[:-1])  # control: a reading left out
    assert np.abs(scores_of(wrong, logits) - expected).max() > 0.1


def test_the_weights_of_a_merged_reading_are_no_larger_than_the_largest(manifest: Manifest) -> None:
    """In half precision hidden states are mixed by them; what they gain in strength is in the coefficient."""
    rewards = [Reward(0, weights, 100 * scale, WARM) for weights, scale in PEOPLE]
    reading = plan_rows(features(manifest), BASE, rewards, 50.0).readings[1]
    assert max(map(abs, reading.weights)) <= max(abs(weight) for weights, _ in PEOPLE for weight in weights)
    opposite = [Reward(0, (1.0, 0.0, 0.0), 1.0, WARM), Reward(0, (0.0, 1.0, 0.0), -1.0, WARM)]
    assert plan_rows(features(manifest), BASE, opposite, 2.0).readings[1] == Reading(1, (0.5, -0.5, 0.0), 4.0)


def test_preferences_that_change_nothing_are_still_read(manifest: Manifest) -> None:
    nothing = [Reward(0, weights, 0.0, WARM) for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))]
    assert plan_rows(features(manifest), BASE, nothing, 2.0).readings[1] == Reading(1, (0.0, 0.0, 0.0), 0.0)


def test_other_prompts_and_other_persrms_are_not_merged(manifest: Manifest) -> None:
    both = with_persrms(manifest, None, head="x")
    rewards = [Reward(0, (1.0,), 1.0, WARM), Reward(0, (2.0,), 1.0, DRY), Reward(1, (3.0,), 1.0, WARM)]
    plan = plan_rows(both, BASE, rewards, 1.0)
    assert plan.rows == (Row(0, 0), Row(0, 1, 0), Row(0, 2, 0), Row(0, 1, 1))
    assert [reading.weights for reading in plan.readings] == [(), (1.0,), (2.0,), (3.0,)]


def test_coefficients_always_sum_to_one(manifest: Manifest) -> None:
    """What makes the normalisers of every softmax drop out; a reading counts as often as its weights add up to."""
    for head in (None, "x"):
        for reference in (None, "base"):
            rewards = [Reward(0, (0.7,), 1.3, WARM), Reward(1, (-2.0,), 0.4, DRY), Reward(0, (0.1,), 1.0, WARM)]
            plan = plan_rows(with_persrms(manifest, reference, head=head), BASE, rewards, 1.7)
            total = sum(each.coefficient * (sum(each.weights) if each.weights else 1.0) for each in plan.readings)
            assert total == pytest.approx(1.0)


def test_words_go_to_the_first_persrm_that_reads_words(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    tokenizer = Tokenizer(tiny_bundle / manifest.tokenizer.file, bos_token="<s>", eos_token=None)
    encoder = PromptEncoder(tokenizer, None)
    wordless = PersRMInfo(**{**dataclasses.asdict(manifest.persrms[0]), "prompt_template": "Q: {x}"})
    reader = dataclasses.replace(manifest.persrms[0], name="reader", features=["reader"])
    planner = RowPlanner(dataclasses.replace(manifest, persrms=[wordless, reader]), encoder)
    plan = partial(planner.plan, beta=1.0, template_args={})
    words = plan("hi", "be kind", base_sees_preference=False)
    assert words.rows[1].persrm == 1
    weights = Preference(weights={wordless.features[0]: 1.0})
    plain = plan("hi", weights, base_sees_preference=False)
    assert plain.rows[1].persrm == 0
    assert list(plain.prompts[plain.rows[1].prompt]) == list(encoder.encode("Q: hi"))
    both = [(weights, 1.0), ("be kind", 1.0)]
    seen = plan("hi", both, base_sees_preference=True)
    assert seen.prompts[0] == words.prompts[words.rows[1].prompt]
    with pytest.raises(PreferenceError, match="which was trained without; expected weights for"):
        plan("hi", Preference("be kind", {wordless.features[0]: 1.0}), base_sees_preference=False)


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

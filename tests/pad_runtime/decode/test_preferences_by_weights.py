"""Any number of preferences by weights over one PersRM and one prompt are two rows; and whoever is beside whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward, RowPlan, plan_rows
from pad_runtime.rows.sequence import Controls
from tests.support import tiny_bundles, tiny_models
from tests.support.decoder_worlds import BETA, World
from tests.support.guided_steps import Asked, run
from tests.support.torch_oracle import Decoded, OracleReward, TorchModel, decode, tolerance, trace_difference

BASE, REWARD = (5, 17, 300, 41, 8), (9, 8, 7, 6, 5, 4, 200)
TOP_K, NUM_TOKENS = 8, 10
COUNTS = (1, 2, 4, 8)
WITH_MANY = ["shared", "shared, backbone", "shared, standard", "pair"]


def wishes(count: int, *, seed: int = 3) -> list[tuple[tuple[float, ...], float]]:
    """Weights over three features, and a preference's own."""
    generator = np.random.default_rng(seed)
    drawn = [(generator.normal(size=3), generator.normal()) for _ in range(count)]
    return [(tuple(map(float, weights)), float(scale) / count) for weights, scale in drawn]


def plan(bundle: Bundle, asked: Sequence[tuple[tuple[float, ...], float]], persrm: str = "many") -> RowPlan:
    number = [info.name for info in bundle.manifest.persrms].index(persrm)
    return plan_rows(bundle.manifest, BASE, [Reward(number, weights, scale, REWARD) for weights, scale in asked], BETA)


def by_torch(world: World, asked: Sequence[tuple[tuple[float, ...], float]], forced: Sequence[int]) -> Decoded:
    models = world.models
    reference = models.base if world.bundle.manifest.reference == "backbone" else None
    rewards = [OracleReward(models.persrms["many"], REWARD, weights, scale, reference) for weights, scale in asked]
    return decode(models.base, BASE, rewards, beta=BETA, top_k=TOP_K, num_tokens=NUM_TOKENS, forced=forced)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", WITH_MANY)
def test_one_row_and_one_reading_however_many(load_world: Callable[[str], World], name: str, count: int) -> None:
    """The tokens are those of the paper's formula with as many rewards, and of the one preference that is their sum."""
    world = load_world(name)
    asked = wishes(count)
    planned = plan(world.bundle, asked)
    references = name == "shared, backbone"
    assert len(planned.rows) == 2 + references
    assert len(planned.readings) == 2 + references
    (found,) = run(world.bundle.decoder(), [Asked.of(planned, top_k=TOP_K)], NUM_TOKENS)
    expected = by_torch(world, asked, found)
    assert expected.margin > 10 * tolerance()
    assert found == expected.token_ids
    total = tuple(np.sum([np.multiply(weights, scale) for weights, scale in asked], axis=0).tolist())
    summed = Asked.of(plan(world.bundle, [(total, 1.0)]), top_k=TOP_K)
    assert run(world.bundle.decoder(), [summed], NUM_TOKENS) == [found]
    other = plan(world.bundle, wishes(count, seed=4))
    assert run(world.bundle.decoder(), [Asked.of(other, top_k=TOP_K)], NUM_TOKENS) != [found]  # control


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_where_logits_are_capped_readings_stay_apart(tmp_path: Path, dialect: str) -> None:
    """Two rows all the same; each preference is weighed behind the cap."""
    base = tmp_path / "base"
    tiny_models.make_base(base, "gemma2", seed=31)
    tiny_models.make_adapter(tmp_path / "many", base, seed=32)
    tiny_models.make_head(tmp_path / "many", 84, d=3, seed=33)
    bundle = tiny_bundles.open_bundle(
        tiny_bundles.export(tmp_path / "bundle", base, [tmp_path / "many"], dialect=dialect)
    )
    models = TorchModel(base), TorchModel(base, adapter=tmp_path / "many", head=tmp_path / "many")
    for count in COUNTS:
        asked = wishes(count)
        planned = plan(bundle, asked)
        assert (len(planned.rows), len(planned.readings)) == (2, 1 + count)
        decoder = bundle.decoder()
        slot = Asked.of(planned, top_k=TOP_K).open(decoder)
        steps = []
        ids = []
        for _ in range(3):
            step = decoder.step([slot], trace=True)
            ids.append(step.ids[0])
            steps += step.trace()
        rewards = [OracleReward(models[1], REWARD, weights, scale) for weights, scale in asked]
        expected = decode(models[0], BASE, rewards, beta=BETA, top_k=TOP_K, num_tokens=3, forced=ids)
        assert ids == expected.token_ids
        assert trace_difference(steps, expected) < tolerance()


@pytest.mark.parametrize("name", [*WITH_MANY, "captured", "engines"])
def test_whoever_is_beside_whom(load_world: Callable[[str], World], name: str) -> None:
    """Plain and guided, k of 5 and of 40, greedy and sampled, penalties and none: each says what it says alone."""
    bundle = load_world(name).bundle
    plans = [plan(bundle, wishes(count)) for count in COUNTS]
    plain = plan_rows(bundle.manifest, BASE, [], BETA)
    penalties = Controls(repetition_penalty=1.5, frequency_penalty=0.5, bias={7: 4.0})
    asked = [
        Asked.of(plain, top_k=5),
        Asked.of(plans[3], top_k=40, temperature=1.5, seed=4),
        Asked.of(plans[1], top_k=5),
        Asked.of(plain, top_k=40, temperature=1.5, seed=4),
        Asked.of(plans[0], top_k=40, controls=penalties),
        Asked.of(plain, top_k=20, controls=penalties),
        Asked.of(plans[2], top_k=7, temperature=3.0, top_p=0.8, seed=5, offer_end=True),
    ]
    alone = [run(bundle.decoder(), [each], NUM_TOKENS)[0] for each in asked]
    assert len(set(map(tuple, alone))) == len(alone)
    generator = np.random.default_rng(6)
    decoder = bundle.decoder()
    for count in (7, 2, 3, 5, 7):
        order = generator.permutation(len(asked))[:count]
        assert run(decoder, [asked[number] for number in order], NUM_TOKENS) == [alone[number] for number in order]


def test_more_people_than_factors_are_kept(load_world: Callable[[str], World]) -> None:
    """A step that is ready reads its LoRA factors, though others have taken their place among those that are kept."""
    world = load_world("captured")
    bundle = world.bundle
    decoder = bundle.decoder()
    names = [info.name for info in bundle.manifest.persrms]
    sets = [[number for number in range(len(names)) if bits >> number & 1] for bits in range(1, 13)]
    asked = []
    for numbers in sets:
        weights = [(1.0,) * len(bundle.manifest.persrms[number].features) for number in numbers]
        rewards = [
            Reward(number, each, 1.0 / len(numbers), REWARD) for number, each in zip(numbers, weights, strict=True)
        ]
        asked.append(Asked.of(plan_rows(bundle.manifest, BASE, rewards, BETA), top_k=TOP_K, new_tokens=NUM_TOKENS))
    alone = [run(world.host.decoder(), [each], NUM_TOKENS)[0] for each in asked]
    slots = [each.open(decoder) for each in asked]
    found: list[list[int]] = [[] for _ in asked]
    for _ in range(NUM_TOKENS):
        for slot, ids in zip(slots, found, strict=True):
            ids.extend(decoder.step([slot]).ids)
    assert found == alone


def test_a_lone_row_is_offered_its_ends_alone_as_in_a_batch(load_world: Callable[[str], World]) -> None:
    """Where nothing but the base decodes, the ends of the turn are candidates all the same."""
    bundle = load_world("shared").bundle
    (end,) = bundle.manifest.eos_token_ids
    plain, guided = plan_rows(bundle.manifest, BASE, [], BETA), plan(bundle, wishes(2))
    options = {"top_k": 3, "temperature": 50.0}
    tokens: dict[bool, set[int]] = {True: set(), False: set()}
    for seed in range(24):
        for offered, found in tokens.items():
            asked = Asked.of(plain, **options, seed=seed, offer_end=offered)
            (alone,) = run(bundle.decoder(), [asked], 1)
            assert run(bundle.decoder(), [Asked.of(guided), asked], 1)[1] == alone
            found |= set(alone)
    assert [end in found for found in tokens.values()] == [True, False]


@pytest.mark.parametrize("name", ["shared", "shared, standard", "pair", "captured"])
def test_more_weights_than_features_in_one_batch(load_world: Callable[[str], World], name: str) -> None:
    """Then the heads themselves are used, and not a mix for each; beside other batches, of which each has its own."""
    bundle = load_world(name).bundle
    asked = [Asked.of(plan(bundle, wishes(1, seed=seed)), top_k=TOP_K) for seed in range(5)]
    asked.append(Asked.of(plan(bundle, [((1.0,), 1.0)], "official"), top_k=TOP_K))
    alone = [run(bundle.decoder(), [each], NUM_TOKENS)[0] for each in asked]
    assert len(set(map(tuple, alone))) > 4
    decoder = bundle.decoder()
    for chosen in (range(6), range(2), range(5), [5, 0], range(4, -1, -1), range(6)):
        assert run(decoder, [asked[number] for number in chosen], NUM_TOKENS) == [alone[number] for number in chosen]

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import estimates
from benchmarks.quality.design import PARTS, TRIED, Design
from benchmarks.quality.estimates import bootstrap, hypervolume, outcomes, rank_correlation, rate
from benchmarks.quality.generation import CellGenerator
from benchmarks.quality.methods import BASE, PENALTIES, RANDOM, Cell
from benchmarks.quality.prompts import TRAINING, read_prompts, read_unpaired
from benchmarks.quality.replies import JudgedReply, ReplyFile, ReplyStore, complete
from benchmarks.quality.traits import DIRECTIONS, Trait, load_traits, read_features

PROMPTS = ["How are you?", "What is rain?", "Why?"]
MARKS = {BASE: "a", "persrm": "b", "persrm-1": "c", RANDOM: "d"}
BASE_CELL = Cell(method="base", max_new_tokens=8)


def reply(text: str, *, cut: bool = False, prompt: str = "?") -> JudgedReply:
    return JudgedReply(prompt, text, tuple(range(len(text.split()))), cut)


@pytest.fixture
def traits(tmp_path: Path) -> dict[str, Trait]:
    path = tmp_path / "features.json"
    path.write_text(json.dumps({name: {"more": [f"more {name}"], "less": [f"less {name}"]} for name in DIRECTIONS}))
    return load_traits(list(DIRECTIONS), path)


@pytest.fixture
def design(traits: dict[str, Trait]) -> Design:
    return Design(traits, ("persrm", "persrm-1"))


# -- estimates --------------------------------------------------------------------------------------------------------


def test_bootstrap_of_a_share_is_the_binomial_interval() -> None:
    values = np.array([1.0] * 30 + [0.0] * 10)
    found = bootstrap(estimates.mean, values, resamples=20_000)
    assert found.value == 0.75
    # Resampled sums are Binomial(40, 0.75): its 2.5 % and 97.5 % points are 24 and 35.
    assert (found.low * 40, found.high * 40) == pytest.approx((24, 35), abs=1e-9)


def test_bootstrap_covers_the_truth_at_its_level() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(2.0, 1.0, size=(300, 60))
    found = [bootstrap(estimates.mean, sample, resamples=400, seed=index) for index, sample in enumerate(samples)]
    covered = np.mean([estimate.low <= 2.0 <= estimate.high for estimate in found])
    narrower = np.mean([abs(estimate.value - 2.0) <= (estimate.high - estimate.low) / 4 for estimate in found])
    assert 0.90 <= covered <= 0.98
    assert narrower < 0.80  # control: half as wide, and it does not


def test_bootstrap_draws_the_same_prompts_from_all_samples() -> None:
    noise = np.random.default_rng(0).normal(0, 10, 50)

    def difference(own: estimates.Array, other: estimates.Array) -> estimates.Array:
        return estimates.mean(own) - estimates.mean(other)

    paired = bootstrap(difference, noise + 1, noise)
    assert (paired.low, paired.value, paired.high) == pytest.approx((1, 1, 1))
    unpaired = bootstrap(difference, noise + 1, noise[::-1].copy())
    assert unpaired.high - unpaired.low > 1


def test_bootstrap_repeats_itself() -> None:
    values = np.arange(20.0)
    assert bootstrap(estimates.mean, values) == bootstrap(estimates.mean, values)
    assert bootstrap(estimates.mean, values) != bootstrap(estimates.mean, values, seed=1)


def test_a_tie_counts_as_half() -> None:
    won = outcomes(np.array([2.0, 1.0, 0.0, 5.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert won.tolist() == [1.0, 0.5, 0.0, 1.0]
    assert rate(won)[0] == 0.625


def test_seeds_are_averaged_within_a_question() -> None:
    """Replies of three seeds that agree tell no more than one seed's; those that do not agree tell more."""
    won = np.random.default_rng(0).integers(2, size=(60, 1)).astype(float)
    assert rate(np.repeat(won, 3, axis=1)) == rate(won[:, 0])
    _, low, high = rate(np.random.default_rng(1).integers(2, size=(60, 3)).astype(float))
    of_one = rate(won[:, 0])
    assert high - low < 0.75 * (of_one[2] - of_one[1])


def test_hypervolume_by_hand() -> None:
    points = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 0.5], [1.5, 1.5], [-1.0, 9.0]])
    #                    x of the front, from 0: 3 to 1, 2 to 2, 0.5 to 3; the last two points lie below it or outside
    assert hypervolume(points) == pytest.approx(1 * 3 + 1 * 2 + 1 * 0.5)
    assert hypervolume(points[::-1]) == pytest.approx(5.5)
    grid = (np.indices((400, 400)).reshape(2, -1).T + 0.5) / 100  # independent: how many small squares are dominated
    dominated = (grid[:, None] < points[None]).all(axis=-1).any(axis=-1)
    assert hypervolume(points) == pytest.approx(float(dominated.mean()) * 16, abs=1e-9)
    assert hypervolume(points[:1]) == pytest.approx(3)  # control: fewer points, less
    assert hypervolume(np.stack([points, -points])).tolist() == pytest.approx([5.5, 0.0])


def test_an_empty_reply_loses_in_both_directions() -> None:
    own, other = np.array([math.nan, 1.0, math.nan]), np.array([1.0, math.nan, math.nan])
    for direction in (1, -1):
        assert outcomes(direction * own, direction * other).tolist() == [0.0, 1.0, 0.5]


def test_rank_correlation_sees_order_and_not_size() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert rank_correlation(x, np.ones(4)) == 0
    # With ties, by hand: ranks 0.5, 0.5, 2, 3 against 0, 1, 2, 3.
    assert rank_correlation(np.array([1.0, 1.0, 2.0, 3.0]), x) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


# -- what judges read -------------------------------------------------------------------------------------------------


def test_plain_text_has_no_markup_and_ends_each_line() -> None:
    text = "# Tips\n\n1. **Sleep** well:\n2. Eat `greens`.\n- Walk"
    assert reply(text).plain == "Tips. Sleep well. Eat greens. Walk"


def test_a_broken_off_sentence_is_dropped_unless_it_is_all_there_is() -> None:
    assert reply("It rains. It will ra", cut=True).sentences == "It rains."
    assert reply("It rains. It will rain", cut=False).sentences == "It rains. It will rain"
    assert reply("It will ra", cut=True).sentences == "It will ra"


def test_equal_words_takes_away_what_length_alone_gave() -> None:
    """Both replies say the same; one goes on. A judge that counts good words prefers the longer, until both are cut."""
    short, long = reply("good " * 5), reply("good " * 9)

    def count(one: JudgedReply) -> float:
        return float(one.plain.count("good"))

    shorter = min(len(each.plain.split()) for each in (short, long))
    assert count(long) > count(short)
    assert count(long.first_words(shorter)) == count(short.first_words(shorter))
    assert long.first_words(shorter).cut
    assert not short.first_words(shorter).cut


def test_a_reply_that_is_cut_keeps_its_lines() -> None:
    text = "Do this:\n\n1. **Sleep** well.\n2. Eat `greens`."
    for number in range(1, 7):
        cut = reply(text).first_words(number)
        assert len(cut.plain.split()) == number
    assert reply(text).first_words(5).text == "Do this:\n\n1. Sleep well.\n2. Eat"
    assert reply(text).first_words(4).text == "Do this:\n\n1. Sleep well."
    assert reply(text).first_words(6).plain == reply(text).plain


# -- resuming ---------------------------------------------------------------------------------------------------------


class Recorder:
    """A generator of cells that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.measured = 0

    def generate(self, cell: Cell, prompts: Sequence[str]) -> ReplyFile:
        self.asked.append(list(prompts))
        return ReplyFile(tuple(reply(f"{cell.method} says so", prompt=prompt) for prompt in prompts), 1.0, 3.0)

    def perplexity(self, one: JudgedReply) -> float:
        self.measured += 1
        return 2.0

    def run(self, store: ReplyStore, cell: Cell, prompts: list[str], *, num_perplexities: int = 1) -> ReplyFile | None:
        return complete(
            store,
            cell,
            prompts,
            num_perplexities=num_perplexities,
            generate=self.generate,
            perplexity=self.perplexity,
        )


def test_a_stored_cell_is_not_generated_again(tmp_path: Path) -> None:
    store, recorder, cell = ReplyStore(tmp_path, MARKS), Recorder(), BASE_CELL
    first = recorder.run(store, cell, PROMPTS)
    assert recorder.run(ReplyStore(tmp_path, MARKS), cell, PROMPTS) is None
    assert recorder.asked == [PROMPTS]
    assert store.load(cell, PROMPTS) == first


def test_more_prompts_add_and_fewer_keep_what_is_there(tmp_path: Path) -> None:
    store, recorder, cell = ReplyStore(tmp_path, MARKS), Recorder(), BASE_CELL
    recorder.run(store, cell, PROMPTS[:2])
    recorder.run(store, cell, PROMPTS)
    assert recorder.asked == [PROMPTS[:2], PROMPTS[2:]]
    recorder.run(store, cell, PROMPTS[:1])
    recorder.run(store, cell, PROMPTS[:2], num_perplexities=2)  # writes the file again
    assert [each.prompt for each in store.load(cell, PROMPTS).replies] == PROMPTS
    assert recorder.measured == 2
    assert len(recorder.asked) == 2


def test_changed_settings_are_generated_again(tmp_path: Path, design: Design) -> None:
    store, recorder = ReplyStore(tmp_path, MARKS), Recorder()
    cell = design.cell("pad_prompted", {"simple": 1.0})
    changed = [
        (ReplyStore(tmp_path, MARKS | {"persrm": "another PersRM"}), cell, PROMPTS),
        (store, replace(cell, beta=2.0), PROMPTS),
        (store, replace(cell, text="other words"), PROMPTS),
        (store, cell, ["Another prompt", *PROMPTS[1:]]),
    ]
    for where, what, prompts in changed:
        recorder.run(store, cell, PROMPTS)
        before = len(recorder.asked)
        recorder.run(where, what, prompts)
        assert recorder.asked[before:] == [prompts]


def test_a_new_persrm_leaves_the_bases_replies(tmp_path: Path, design: Design) -> None:
    recorder = Recorder()
    cells = [design.cell(method, {"simple": 1.0}) for method in ("base", "prompted", "pad", "random")]
    for marks in (MARKS, MARKS | {"persrm": "new", RANDOM: "new"}):
        for cell in cells:
            recorder.run(ReplyStore(tmp_path, marks), cell, PROMPTS)
    assert len(recorder.asked) == 4 + 2


def test_a_damaged_file_is_generated_again(tmp_path: Path) -> None:
    store, recorder, cell = ReplyStore(tmp_path, MARKS), Recorder(), BASE_CELL
    recorder.run(store, cell, PROMPTS)
    path = tmp_path / f"{cell.slug}.json"
    path.write_text(path.read_text()[:40])
    recorder.run(store, cell, PROMPTS)
    assert recorder.asked == [PROMPTS, PROMPTS]


# -- cells ------------------------------------------------------------------------------------------------------------


def all_cells(design: Design) -> list[Cell]:
    return [cell for part in PARTS for cell in design.cells(part)]


def test_every_cell_has_a_file_of_its_own(design: Design) -> None:
    cells = {*all_cells(design), *all_cells(replace(design, beta=0.9))}
    assert len({cell.slug for cell in cells}) == len(cells)


def test_what_asks_nothing_of_the_reward_is_the_base(design: Design) -> None:
    base = design.base(design.traits["simple"].max_new_tokens)
    assert design.pad({"simple": 1.0}, beta=0.0) == base
    assert design.pad({"simple": 1.0}, top_k=1) == base
    assert design.pad({"simple": 0.0}) == base
    assert design.pad({"simple": 0.5}) != base


def test_another_beta_asks_only_the_guided_replies_anew(design: Design) -> None:
    kept = {*all_cells(design)} & {*all_cells(replace(design, beta=0.9, persrms=("persrm",)))}
    assert {cell.method for cell in kept} == {"base", "prompted", "system", "persrm", "pad"}
    assert {cell.beta for cell in kept if cell.method == "pad"} == {0.5, 0.8, 1.15, 1.5, 2.0}  # of the part beta


def test_each_persrm_of_the_main_part_is_asked_the_same(design: Design) -> None:
    guided = [asked for asked in design.asked("main") if asked.cells[0].method == "pad"]
    assert len(guided) == 16
    for asked in guided:
        first, second = asked.cells
        assert (first.persrm, second) == ("persrm", replace(first, persrm="persrm-1"))
    others = [cell for part in PARTS for cell in design.cells(part) if cell.persrm == "persrm-1"]
    assert len(others) == 16  # no other part asks it


def test_sampled_replies_are_held_against_sampled_ones(design: Design) -> None:
    for asked in design.asked("sampled"):
        sample = int(asked.cells[0].method != "base")  # how much samples vary shows beside the greedy reply
        assert (asked.base.sample, asked.prompted.sample, asked.cells[0].sample) == (sample, sample, 1)
    assert not any(cell.sample for cell in design.cells("main"))


def test_a_persrm_with_fewer_features_has_fewer_users(design: Design, tmp_path: Path) -> None:
    (tmp_path / "pad_persrm.json").write_text(json.dumps({"features": ["concise", "cheerful", "simple", "words"]}))
    names = read_features(tmp_path)
    assert names == ["cheerful", "simple", "concise"]
    small = replace(design, traits={name: design.traits[name] for name in names}, chat=False)
    assert (len(design.users), len(small.users)) == (16, 6)
    assert (len(design.mixtures), len(small.mixtures)) == (12, 2)
    assert (len(design.sliders), len(small.sliders)) == (2, 1)
    assert {name for cell in all_cells(small) for name, _ in cell.weights} == set(names)
    assert {cell.method for cell in all_cells(design)} - {cell.method for cell in all_cells(small)} == {"system"}


def test_mixtures_want_each_feature_and_all_directions_but_detailed(design: Design) -> None:
    wanted = [(name, weight > 0) for weights in design.mixtures for name, weight in weights.items()]
    assert [sum(name == feature for name, _ in wanted) for feature in DIRECTIONS] == [3] * 8
    assert {(name, more) for name in DIRECTIONS for more in (True, False)} - set(wanted) == {("concise", False)}
    assert all(sum(weight**2 for weight in weights.values()) == pytest.approx(1) for weights in design.mixtures)


def test_the_end_is_offered_to_those_whose_wish_is_about_length(design: Design) -> None:
    for cell in all_cells(design):
        assert cell.offer_end == ("concise" in dict(cell.weights) and cell.method != "persrm"), cell.slug
    speak = CellGenerator.__new__(CellGenerator)  # a cell's options need no bundle
    assert speak.config(design.cell("random", {"concise": 1.0}), "?").offer_end
    assert not speak.config(design.cell("random", {"cheerful": 1.0}), "?").offer_end


def test_a_sample_has_a_seed_of_its_own_for_each_question(design: Design) -> None:
    speak = CellGenerator.__new__(CellGenerator)
    cells = [design.base(8, sample) for sample in (1, 2)]
    seeds = {speak.config(cell, question).seed for cell in cells for question in PROMPTS}
    assert len(seeds) == 6
    assert speak.config(cells[0], PROMPTS[0]) == speak.config(cells[0], PROMPTS[0])
    assert speak.config(design.base(8), PROMPTS[0]).temperature == 0


def test_penalties_are_options_of_the_request_and_part_of_the_cell(design: Design) -> None:
    plain = replace(design.pad({"simple": 1.0}), penalties=())
    penalized = replace(plain, penalties=(("frequency_penalty", 0.3), ("no_repeat_ngram", 4)))
    speak = CellGenerator.__new__(CellGenerator)  # a cell's options need no bundle
    config = speak.config(penalized, "?")
    assert (config.frequency_penalty, config.no_repeat_ngram) == (0.3, 4)
    assert replace(config, frequency_penalty=0.0, no_repeat_ngram=0) == speak.config(plain, "?")
    assert len({plain.slug, penalized.slug, replace(plain, penalties=(("frequency_penalty", 0.3),)).slug}) == 3


def test_all_methods_have_the_penalty_that_was_tried_among_others(design: Design) -> None:
    assert PENALTIES in TRIED
    assert {asked.cells[0].penalties for asked in design.asked("penalties")} == set(TRIED)
    parts = set(PARTS) - {"penalties", "unpenalized"}
    assert {cell.penalties for part in parts for cell in design.cells(part)} == {PENALTIES}
    for asked in design.asked("unpenalized"):
        assert {cell.penalties for cell in (*asked.cells, asked.base, asked.prompted)} == {()}


def test_the_setting_is_chosen_on_questions_that_are_not_measured() -> None:
    chosen_on, measured_on = read_unpaired(100), read_prompts(100)
    assert len({*chosen_on, *measured_on}) == 200
    trained = "".join((TRAINING / name).read_text(encoding="utf-8") for name in ("pairs.jsonl", "guided-pairs.jsonl"))
    assert not any(json.dumps(prompt) in trained for prompt in chosen_on)
    everything = (TRAINING / "data" / "prompts" / "training.txt").read_text(encoding="utf-8").splitlines()
    assert json.dumps(everything[0]) in trained  # control: the list begins with those that pairs were made of


def test_a_feature_without_wordings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text(json.dumps({"simple": {"more": ["more"], "less": ["less"]}}))
    assert load_traits(["simple"], path)["simple"].directions == ("simple", "academic")
    with pytest.raises(SystemExit, match="no wordings for warm"):
        load_traits(["simple", "warm"], path)


# -- the random reward ------------------------------------------------------------------------------------------------


def test_the_random_reward_gets_the_trained_ones_scale() -> None:
    random_reward = pytest.importorskip("benchmarks.quality.random_reward")
    rng = np.random.default_rng(0)
    base = rng.normal(0, 3, (200, 10)) + 50  # what all candidates share must not matter
    trained, pushed = base + rng.normal(7, 2, (200, 10)), rng.normal(0, 5, (200, 10))
    for total in (1.0, -0.7, 2.5):  # the weights of a random direction sum to anything
        logits = np.stack([base, trained, total * base + pushed], axis=1)
        scale = random_reward.compare(logits, np.full(200, total))
        assert scale.factor == pytest.approx(2 / 5, rel=0.05)
        assert abs(scale.trained_to_random) < 0.1
        assert abs(scale.random_to_base) < 0.1
    assert random_reward.compare(logits, np.ones(200)).factor < 0.35  # control: 1.5 z_base is taken for a reward
    against = random_reward.compare(np.stack([base, base * 0, base * 2], axis=1), np.ones(200))
    assert (against.trained_to_base, against.random_to_base) == pytest.approx((-1, 1))


def test_the_random_persrm_has_the_trained_ones_norms(tmp_path: Path) -> None:
    random_reward = pytest.importorskip("benchmarks.quality.random_reward")
    import torch
    from safetensors.torch import load_file, save_file

    trained, made = tmp_path / "trained", tmp_path / "made"
    trained.mkdir()
    (trained / "adapter_config.json").write_text("{}")
    (trained / "pad_persrm.json").write_text(json.dumps({"features": ["cheerful"], "default_weights": [1]}))
    save_file({"lora": torch.full((4, 6), 0.5).half()}, trained / "adapter_model.safetensors")
    save_file(
        {"feature_head.weight": torch.eye(5) + torch.tensor([0.1, 0.3])[:, None, None]},
        trained / "value_head.safetensors",
    )
    for seed in (0, 0, 1):
        random_reward.write_random_persrm(trained, made / str(seed), seed=seed)
    lora, head = (load_file(made / "0" / f"{name}.safetensors") for name in ("adapter_model", "value_head"))
    assert float(lora["lora"].norm()) == pytest.approx(0.5 * math.sqrt(24), rel=1e-5)
    moved = head["feature_head.weight"] - torch.eye(5)
    norms = [float(each.norm()) for each in moved]
    assert norms == pytest.approx([0.1 * 5, 0.3 * 5] * (random_reward.NUM_FEATURES // 2), rel=1e-5)
    assert not torch.allclose(moved[0], torch.full((5, 5), 0.1), atol=1e-3)
    assert not torch.allclose(moved[2], moved[0], atol=1e-3)
    other = load_file(made / "1" / "adapter_model.safetensors")["lora"]
    assert not torch.allclose(other, lora["lora"])
    settings = json.loads((made / "0" / "pad_persrm.json").read_text())
    assert len(settings["features"]) == len(settings["default_weights"]) == random_reward.NUM_FEATURES


def test_every_question_has_a_random_reward_of_its_own_that_leans_nowhere() -> None:
    random_reward = pytest.importorskip("benchmarks.quality.random_reward")
    factors = {"cheerful": 2.0, "simple": 0.5}

    def drawn(prompt: str, wanted: dict[str, float]) -> np.ndarray:
        return np.array(list(random_reward.random_weights(prompt, wanted, factors).values()))

    many = np.array([drawn(f"question {index}", {"cheerful": 1.0}) for index in range(400)])
    assert np.linalg.norm(many, axis=1) == pytest.approx(2.0, rel=1e-4)
    assert np.abs(many.mean(axis=0)).max() < 0.15  # 2 / sqrt(8 * 400) is a standard error of 0.035
    repeated = np.array([drawn("one question", {"cheerful": 1.0})] * 400)  # control: one draw for all leans
    assert np.abs(repeated.mean(axis=0)).max() > 0.5
    assert abs(float(many[0] @ drawn("question 0", {"cheerful": -1.0}))) < 0.99 * 4  # the opposite user draws anew
    assert np.linalg.norm(drawn("question 0", {"simple": -0.5})) == pytest.approx(0.25, rel=1e-4)

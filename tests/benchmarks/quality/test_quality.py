from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import estimates
from benchmarks.quality.estimates import bootstrap, distance_to_trained, outcomes, rank_correlation, win_rate
from benchmarks.quality.generation import CellGenerator
from benchmarks.quality.methods import PARTS, Cell, base_cell, pad_cell, part_cells, trait_cell
from benchmarks.quality.prompts import TRAINING, read_prompts, read_unpaired
from benchmarks.quality.replies import JudgedReply, ReplyFile, ReplyStore, complete
from benchmarks.quality.traits import UNSEEN, Trait, load_traits

PROMPTS = ["How are you?", "What is rain?", "Why?"]


def reply(text: str, *, cut: bool = False, prompt: str = "?") -> JudgedReply:
    return JudgedReply(prompt, text, tuple(range(len(text.split()))), cut)


@pytest.fixture
def traits(tmp_path: Path) -> dict[str, Trait]:
    path = tmp_path / "features.json"
    path.write_text(json.dumps({name: {"more": [f"more {name}"], "less": [f"less {name}"]} for name in UNSEEN}))
    return load_traits(path)


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


def test_win_rate_counts_a_tie_as_half() -> None:
    rate = win_rate(outcomes(np.array([2.0, 1.0, 0.0, 5.0]), np.array([1.0, 1.0, 1.0, 1.0])))
    assert (rate.win, rate.lose, rate.tie, rate.rate.value) == (0.5, 0.25, 0.25, 0.625)


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


def test_distinct_2_by_hand() -> None:
    assert estimates.distinct_2("a b a b") == pytest.approx(2 / 3)  # ab, ba, ab
    assert math.isnan(estimates.distinct_2("one"))


@pytest.mark.parametrize(
    ("weights", "distance"), [((1, 0), 0), ((0, -1), 0), ((0, -0.5), 0.5), ((1, 1), 1), ((0.6, 0.8), math.sqrt(0.4))]
)
def test_distance_to_the_nearest_trained_weights(weights: tuple[float, ...], distance: float) -> None:
    nearest = min(np.linalg.norm(np.array(weights) - sign * axis) for axis in np.eye(2) for sign in (1, -1))
    assert distance_to_trained(weights) == pytest.approx(distance) == pytest.approx(float(nearest))


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
    store, recorder, cell = ReplyStore(tmp_path, "a"), Recorder(), base_cell(8)
    first = recorder.run(store, cell, PROMPTS)
    assert recorder.run(ReplyStore(tmp_path, "a"), cell, PROMPTS) is None
    assert recorder.asked == [PROMPTS]
    assert store.load(cell, PROMPTS) == first


def test_more_prompts_add_and_fewer_keep_what_is_there(tmp_path: Path) -> None:
    store, recorder, cell = ReplyStore(tmp_path, "a"), Recorder(), base_cell(8)
    recorder.run(store, cell, PROMPTS[:2])
    recorder.run(store, cell, PROMPTS)
    assert recorder.asked == [PROMPTS[:2], PROMPTS[2:]]
    recorder.run(store, cell, PROMPTS[:1])
    recorder.run(store, cell, PROMPTS[:2], num_perplexities=2)  # writes the file again
    assert [each.prompt for each in store.load(cell, PROMPTS).replies] == PROMPTS
    assert recorder.measured == 2
    assert len(recorder.asked) == 2


def test_changed_settings_are_generated_again(tmp_path: Path, traits: dict[str, Trait]) -> None:
    store, recorder = ReplyStore(tmp_path, "a"), Recorder()
    cell = trait_cell("pad_words", traits["simple"], 1.0)
    changed = [
        (ReplyStore(tmp_path, "another PersRM"), cell, PROMPTS),
        (store, replace(cell, beta=2.0), PROMPTS),
        (store, replace(cell, text="other words"), PROMPTS),
        (store, cell, ["Another prompt", *PROMPTS[1:]]),
    ]
    for where, what, prompts in changed:
        recorder.run(store, cell, PROMPTS)
        before = len(recorder.asked)
        recorder.run(where, what, prompts)
        assert recorder.asked[before:] == [prompts]


def test_a_damaged_file_is_generated_again(tmp_path: Path) -> None:
    store, recorder, cell = ReplyStore(tmp_path, "a"), Recorder(), base_cell(8)
    recorder.run(store, cell, PROMPTS)
    path = tmp_path / f"{cell.slug}.json"
    path.write_text(path.read_text()[:40])
    recorder.run(store, cell, PROMPTS)
    assert recorder.asked == [PROMPTS, PROMPTS]


# -- cells ------------------------------------------------------------------------------------------------------------


def test_every_cell_has_a_file_of_its_own(traits: dict[str, Trait]) -> None:
    cells = {cell for part in PARTS for cell in part_cells(part, traits)}
    assert len({cell.slug for cell in cells}) == len(cells)


def test_what_asks_nothing_of_the_reward_is_the_base(traits: dict[str, Trait]) -> None:
    base = base_cell(traits["simple"].max_new_tokens)
    assert pad_cell({"simple": 1.0}, traits, beta=0.0) == base
    assert pad_cell({"simple": 1.0}, traits, top_k=1) == base
    assert pad_cell({"simple": 0.0}, traits) == base
    assert pad_cell({"simple": 0.5}, traits) != base


def test_the_end_is_offered_to_those_whose_wish_is_about_length(traits: dict[str, Trait]) -> None:
    for part in PARTS:
        for cell in part_cells(part, traits):
            assert cell.offer_end == ("concise" in dict(cell.weights) and cell.method != "persrm"), cell.slug
    length, feeling = (trait_cell("random", traits[name], 1.0) for name in ("concise", "cheerful"))
    speak = CellGenerator.__new__(CellGenerator)  # a cell's options need no bundle
    assert speak.config(length).offer_end
    assert not speak.config(feeling).offer_end


def test_penalties_are_options_of_the_request_and_part_of_the_cell(traits: dict[str, Trait]) -> None:
    plain = trait_cell("pad", traits["simple"], 1.0)
    penalized = replace(plain, penalties=(("frequency_penalty", 0.3), ("no_repeat_ngram", 4)))
    speak = CellGenerator.__new__(CellGenerator)  # a cell's options need no bundle
    config = speak.config(penalized)
    assert (config.frequency_penalty, config.no_repeat_ngram) == (0.3, 4)
    assert replace(config, frequency_penalty=0.0, no_repeat_ngram=0) == speak.config(plain)
    assert len({plain.slug, penalized.slug, replace(plain, penalties=(("frequency_penalty", 0.3),)).slug}) == 3


def test_repetition_is_measured_without_penalties_and_with_a_setting_that_was_tried(traits: dict[str, Trait]) -> None:
    repetition = pytest.importorskip("benchmarks.quality.repetition")
    users = [(traits[name], weight) for name, weight in repetition.USERS]
    rows = repetition.measured(users)
    assert {row.cell.penalties for row in rows if row.cell.method == "pad"} == {(), repetition.CHOSEN}
    assert repetition.CHOSEN in repetition.TRIED
    assert {row.cell.penalties for row in repetition.choice(users)} == {(), *repetition.TRIED}
    cells = {cell for row in rows for cell in (row.cell, row.base, row.prompted)}
    assert len({cell.slug for cell in cells}) == len(cells)


def test_the_setting_is_chosen_on_questions_that_are_not_measured() -> None:
    chosen_on, measured_on = read_unpaired(100), read_prompts(100)
    assert len({*chosen_on, *measured_on}) == 200
    trained = (TRAINING / "guided-pairs.jsonl").read_text(encoding="utf-8")
    assert not any(json.dumps(prompt) in trained for prompt in chosen_on)
    everything = (TRAINING / "data" / "prompts" / "training.txt").read_text(encoding="utf-8").splitlines()
    assert json.dumps(everything[0]) in trained  # control: most of the list is


def test_a_wording_of_the_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    used = UNSEEN["simple"][0].upper()
    path.write_text(json.dumps({name: {"more": ["more", used], "less": ["less"]} for name in UNSEEN}))
    with pytest.raises(SystemExit, match="was used in training"):
        load_traits(path)


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


# -- judges -----------------------------------------------------------------------------------------------------------

HAPPY, SAD = "What a lovely, wonderful day! I am so happy.", "What an awful, dreadful day. I hate it and I am sad."
EASY = "The cat sat on the mat. It was warm. It went to sleep."
HARD = "Contemporary epistemological considerations necessitate comprehensive interdisciplinary reconceptualisation."


def test_vader_prefers_the_happy_text() -> None:
    pytest.importorskip("vaderSentiment")
    judges = pytest.importorskip("benchmarks.quality.judges")
    happy, sad, neither = judges.vader_compound()([HAPPY, SAD, "The table has four legs."])
    assert happy > neither > sad


@pytest.mark.filterwarnings("ignore:pkg_resources is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:unclosed file .*easy_words:ResourceWarning")  # textstat leaves its word list open
def test_readability_judges_prefer_the_easy_text() -> None:
    pytest.importorskip("textstat", exc_type=ImportError)
    judges = pytest.importorskip("benchmarks.quality.judges")
    for scorer in (judges.minus_grade, judges.minus_dale_chall):
        easy, hard = scorer([EASY, HARD])
        assert easy > hard


def test_the_linear_judge_learns_what_it_is_shown_and_nothing_from_shuffled_labels() -> None:
    pytest.importorskip("sklearn")
    judges = pytest.importorskip("benchmarks.quality.judges")
    good = [f"a lovely film about {thing}" for thing in ("love", "war", "rain", "dogs", "snow", "cats")]
    bad = [f"a dreadful film about {thing}" for thing in ("love", "war", "rain", "dogs", "snow", "cats")]
    lovely, dreadful = judges.train_linear(good, bad)(["such a lovely song", "such a dreadful song"])
    assert lovely > 0 > dreadful
    shuffled = judges.train_linear(good[:3] + bad[:3], good[3:] + bad[3:])(["such a lovely song", "a dreadful song"])
    assert abs(shuffled[0] - shuffled[1]) < (lovely - dreadful) / 4


def test_an_empty_reply_gets_no_score() -> None:
    judges = pytest.importorskip("benchmarks.quality.judges")
    judge = judges.Judge("minus tokens", "concise", True, judges.minus_tokens, "")
    scores = judge([reply("two words"), reply(" \n"), reply("**")])
    assert scores[0] == -2
    assert np.isnan(scores[1:]).all()

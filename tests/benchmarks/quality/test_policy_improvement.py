from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.judges import Judge
from benchmarks.quality.policy_improvement import __main__ as command
from benchmarks.quality.policy_improvement.bank import MIXTURES, WANTED, Utility, corners, directions, vector
from benchmarks.quality.policy_improvement.figures import rows_of_ways
from benchmarks.quality.policy_improvement.guided_decoding import GuidedStep
from benchmarks.quality.policy_improvement.replies import Asked, GuidedReply, make_replies
from benchmarks.quality.policy_improvement.value import Predicted, fit
from benchmarks.quality.policy_improvement.ways import BestReading, LinearMix, NoValue, Summed, gains, normalised
from benchmarks.quality.replies import JudgedReply
from pad_export.read.checkpoint import open_checkpoint
from pad_rt import GenerationConfig, Preference
from pad_train.train.backbone import load_backbone
from pad_train.train.persrm_folder import read_reward_model
from pad_train.train.reward_model import RewardModel
from tests.support import tiny_bundles, tiny_training

FEATURES = ("a", "b")
PROMPTS = ["the cook", "boil an egg and wait", "why"]
USER = (0.8, -0.6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base, and a PersRM whose features differ."""
    root = tmp_path_factory.mktemp("readings")
    return tiny_training.write_random_persrm(root, FEATURES)


@pytest.fixture(scope="module")
def model(folders: tuple[Path, Path]) -> RewardModel:
    base, taste = folders
    return read_reward_model(taste, load_backbone(open_checkpoint(base), dtype=torch.float32))


def ask(weights: tuple[float, ...] = USER, *, offer_end: bool = False, cap: int = 12) -> list[Asked]:
    return [Asked(prompt, weights, offer_end, cap) for prompt in PROMPTS]


def ids(replies: list[GuidedReply]) -> list[tuple[int, ...]]:
    return [one.reply.token_ids for one in replies]


def random_step(*, num: int = 3, features: int = 2, candidates: int = 7) -> GuidedStep:
    generator = torch.Generator().manual_seed(3)
    log_probs, phi = (
        torch.randn(shape, generator=generator) for shape in ((num, candidates), (features, num, candidates))
    )
    return GuidedStep(
        torch.zeros(num, candidates, dtype=torch.long),
        log_probs.log_softmax(-1),
        normalised(phi, log_probs.log_softmax(-1)),
        torch.randn(num, 5, generator=generator),
        4,
    )


# -- decoding ---------------------------------------------------------------------------------------------------------


def test_the_linear_mix_gives_the_tokens_of_the_bundle(
    folders: tuple[Path, Path], model: RewardModel, tmp_path: Path
) -> None:
    base, taste = folders
    bundle = tiny_bundles.export(tmp_path / "bundle", base, [taste], max_top_k=20, eos=[model.backbone.eos_id])
    generator = tiny_bundles.load(bundle)
    config = GenerationConfig(beta=1.5, top_k=6, max_new_tokens=12)

    def by_bundle(weights: tuple[float, ...]) -> list[tuple[int, ...]]:
        wanted = Preference(weights=dict(zip(FEATURES, weights, strict=True)))
        return [generator.generate(prompt, preference=wanted, config=config).token_ids for prompt in PROMPTS]

    made = make_replies(model, ask(), partial(LinearMix, beta=1.5), top_k=6)
    assert ids(made) == by_bundle(USER)
    assert ids(made) != by_bundle((-0.8, 0.6))


def test_perplexity_is_the_base_s_over_the_whole_vocabulary(model: RewardModel) -> None:
    made = make_replies(model, ask(), partial(LinearMix, beta=1.5), top_k=6)
    for one in made:
        prompt = model.backbone.encode_prompt(({"role": "user", "content": one.reply.prompt},))
        read = torch.tensor([[*prompt, *one.reply.token_ids]])
        with torch.no_grad(), model.trunk.disable_adapter():
            logits = model.backbone.model(read).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(one.reply.token_ids))
        assert one.reply.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-3)


def test_a_smaller_cap_gives_the_first_tokens_of_a_larger_one(model: RewardModel) -> None:
    scoring = partial(LinearMix, beta=1.5)
    long, short = (make_replies(model, ask(cap=cap), scoring, top_k=6) for cap in (12, 5))
    for one, other in zip(long, short, strict=True):
        cut = one.first(5, lambda some: model.backbone.tokenizer.decode(some, skip_special_tokens=True))
        assert (cut.token_ids, cut.text, cut.cut) == (other.reply.token_ids, other.reply.text, other.reply.cut)
        assert cut.perplexity == pytest.approx(other.reply.perplexity, rel=1e-4)


# -- the best reading -------------------------------------------------------------------------------------------------


def test_one_reading_along_the_user_s_weights_is_the_linear_mix() -> None:
    step, weights = random_step(), torch.tensor([[0.8, -0.6]] * 3)
    mix = LinearMix(weights, 1.5).score(step)
    best = BestReading(weights, torch.tensor([[0.8, -0.6]]), NoValue(), beta=1.5).score(step)
    torch.testing.assert_close(best - best[:, :1], mix - mix[:, :1])  # a normaliser is a constant of the step
    other = BestReading(weights, torch.tensor([[1.0, 0.0]]), NoValue(), beta=1.5).score(step)
    assert not torch.allclose(other - other[:, :1], mix - mix[:, :1])


def test_the_best_of_two_readings_by_hand() -> None:
    step, weights, bank = random_step(), torch.tensor([[0.8, 0.6]] * 3), torch.eye(2)
    best = BestReading(weights, bank, NoValue(), beta=1.0).score(step)
    torch.testing.assert_close(best, step.log_probs + torch.maximum(0.8 * step.phi[0], 0.6 * step.phi[1]))


def test_a_reading_on_the_other_side_is_not_asked() -> None:
    step, weights = random_step(), torch.tensor([[0.8, 0.0]] * 3)
    alone = BestReading(weights, torch.tensor([[1.0, 0.0]]), NoValue(), beta=1.0).score(step)
    beside = BestReading(weights, torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), NoValue(), beta=1.0).score(step)
    torch.testing.assert_close(alone, beside)


def test_the_reading_with_the_higher_value_is_followed() -> None:
    step, weights, bank = random_step(), torch.tensor([[0.8, 0.6]] * 3), torch.eye(2)
    coefficients = torch.zeros(2, 2, 7)
    coefficients[1, :, -1] = 100.0  # the second reading is predicted to do far better
    value = Predicted(coefficients, torch.ones(2), weights, cap=10)
    score = BestReading(weights, bank, value, beta=1.0).score(step)
    alone = BestReading(weights, bank[1:], NoValue(), beta=1.0).score(step)
    torch.testing.assert_close(score - score[:, :1], alone - alone[:, :1], atol=1e-4, rtol=1e-4)


def test_the_summed_value_is_what_a_reading_thought_of_the_reply_so_far() -> None:
    step, bank = random_step(), torch.eye(2)
    of_users = gains(torch.tensor([[0.8, 0.6]] * 3), bank)
    value = Summed(of_users)
    chosen = torch.tensor([1, 4, 0])
    for _ in range(2):
        value.took(step.phi, chosen)
    expected = torch.stack([step.phi[reading, range(3), chosen] for reading in range(2)])
    torch.testing.assert_close(value(step), 2 * of_users * expected)


def test_a_user_has_nothing_of_a_reading_at_a_right_angle() -> None:
    third = math.sqrt(1 / 3)
    assert gains(torch.tensor([[third, third, 0.0]]), torch.tensor([[third, -third, third]]))[0, 0] == 0.0


# -- what the logits say of values ------------------------------------------------------------------------------------


class Tree:
    """Every reply of three tokens out of three, the base's probabilities, and a reward for every token."""

    def __init__(self, seed: int, *, at_end: bool) -> None:
        rng = np.random.default_rng(seed)
        self.base = {state: np.log(rng.dirichlet(np.ones(3))) for state in self.states()}
        self.reward = {
            state: rng.normal(size=3) if len(state) == 2 or not at_end else np.zeros(3) for state in self.states()
        }

    @staticmethod
    def states() -> list[tuple[int, ...]]:
        return [(), *((a,) for a in range(3)), *((a, b) for a in range(3) for b in range(3))]

    def quality(self, state: tuple[int, ...]) -> np.ndarray:
        """Soft Q of every token."""
        return self.reward[state] + np.array([self.value((*state, token)) for token in range(3)])

    def value(self, state: tuple[int, ...]) -> float:
        return 0.0 if len(state) == 3 else float(np.logaddexp.reduce(self.base[state] + self.quality(state)))

    def log_ratio(self, state: tuple[int, ...]) -> np.ndarray:
        """log pi - log p of the best policy, from its logits, as a PersRM's phi is computed."""
        reward, base = (torch.tensor(some) for some in (self.quality(state), self.base[state]))
        return normalised(reward, base).numpy()


def test_phi_is_q_less_v() -> None:
    tree = Tree(0, at_end=False)
    for state in tree.states():
        np.testing.assert_allclose(tree.log_ratio(state), tree.quality(state) - tree.value(state))


def test_phi_does_not_tell_rewards_that_differ_by_a_potential() -> None:
    tree, shaped = Tree(0, at_end=False), Tree(0, at_end=False)
    potential = {state: float(len(state) + sum(state)) for state in tree.states()}
    for state in tree.states():
        later = np.array([potential.get((*state, token), 0.0) for token in range(3)])
        shaped.reward[state] = tree.reward[state] + potential[state] - later
    for state in tree.states():
        np.testing.assert_allclose(shaped.log_ratio(state), tree.log_ratio(state))
        assert shaped.value(state) == pytest.approx(tree.value(state) + potential[state])


@pytest.mark.parametrize("at_end", [True, False])
def test_the_sum_of_phi_is_the_value_if_the_reward_is_paid_at_the_end(at_end: bool) -> None:
    tree = Tree(1, at_end=at_end)
    errors = []
    for state in tree.states():
        summed = sum(tree.log_ratio(state[:length])[state[length]] for length in range(len(state)))
        errors.append(abs(tree.value(()) + summed - tree.value(state)))
    assert (max(errors) < 1e-9) == at_end


# -- estimated values -------------------------------------------------------------------------------------------------


def test_a_value_that_states_tell_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    states, questions = rng.normal(size=(400, 12)), np.repeat(np.arange(40), 10)
    verdicts = states @ np.arange(12.0) + 3
    found = fit(states, verdicts, questions)
    assert found.explained > 0.99
    np.testing.assert_allclose(found.coefficients, [*np.arange(12.0), 3.0], atol=0.5)
    assert fit(states, rng.normal(size=40)[questions], questions).explained < 0.1


# -- the bank ---------------------------------------------------------------------------------------------------------


def test_the_bank_has_corners_and_mixtures_of_unit_length() -> None:
    features = ("a", "b", "c")
    bank = [vector(direction, features) for direction in directions(features)]
    assert len(corners(features)) == 6
    assert len(set(bank)) == len(bank) == 10
    assert np.linalg.norm(bank, axis=1) == pytest.approx(np.ones(10))


# -- figures ----------------------------------------------------------------------------------------------------------


def test_utility_is_a_weighted_sum_in_which_an_empty_reply_is_worst() -> None:
    length = Judge("words", "a", lambda replies: [float(len(one.text.split())) for one in replies])
    utility = Utility({"a": length, "b": length}, {"a": 2.0, "b": 1.0})
    replies = [JudgedReply("?", text, (), False) for text in ("one", "one two three", "")]
    assert utility({"a": 3.0, "b": 4.0}, replies) == pytest.approx([0.3 + 0.8, 0.9 + 2.4, 0.3 + 0.8])
    assert utility({"a": -1.0}, replies) == pytest.approx([-0.5, -1.5, -1.5])


def test_regret_and_wins_by_hand() -> None:
    own, best, base = (np.tile(values, (4, 1)) for values in ([1.0, 0.0], [1.0, 0.5], [0.0, 0.5]))
    replies = {name: [JudgedReply("?", "a b", (1, 2), False, 2.0)] * 8 for name in ("linear", "max", "base")}
    rows = rows_of_ways({"linear": own, "max": best, "base": base}, replies, base="base", reference="linear")
    regrets = {row["way"]: row["regret"][0] for row in rows}
    assert regrets == {"linear": 0.25, "max": 0.0, "base": 0.5}  # means of (0, .5), (0, 0) and (1, 0)
    assert rows[1]["win_over_reference"][0] == 0.75  # a tie for one user, a win for the other
    assert rows[0]["win_over_base"][0] == 0.5
    assert rows[1]["gain_over_reference"] == [0.25, 0.25, 0.25]


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_row_for_every_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = RewardModel(tiny_training.make_backbone(tmp_path / "base"), WANTED, rank=3, alpha=6.0).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    for name in ("find_smollm2", "open_checkpoint", "load_backbone"):
        monkeypatch.setattr(command, name, lambda *_, **__: None)
    monkeypatch.setattr(command, "read_reward_model", lambda *_: model)
    judges = [Judge(name, name, lambda replies, at=at: letters(replies, at)) for at, name in enumerate(WANTED)]
    monkeypatch.setattr(command, "load_judges", lambda: judges)
    sizes = ["--questions", "2", "--fit-questions", "3"]
    monkeypatch.setattr("sys.argv", ["policy_improvement", *sizes, "--results", str(tmp_path)])
    command.main()
    record = json.loads((tmp_path / "policy_improvement.json").read_text(encoding="utf-8"))
    ways = [row["way"] for row in record["rows"]]
    assert ways[:4] == ["base", "corner", "corner, in hindsight", "linear"]
    assert ways[4:] == ["max", "max, summed value", "max, predicted value"]
    assert len(record["users"]) == len(MIXTURES) == 13
    assert next(row for row in record["rows"] if row["way"] == "linear")["win_over_reference"] == [0.5, 0.5, 0.5]


def letters(replies: Sequence[JudgedReply], at: int) -> list[float]:
    """How often a letter occurs: an opinion that every reply gives grounds for."""
    return [float(reply.text.count("aei"[at])) + 0.01 * len(reply.text) for reply in replies]

from __future__ import annotations

import numpy as np
import pytest
import torch

from pad_train.train.loss import bradley_terry, imitation, reply_margins, spread

REWARDS = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 0.5])
SIGNS = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, -1.0])
OWNERS = torch.tensor([0, 0, 0, 2, 2, 2])


def test_margins_are_sums_over_tokens() -> None:
    margins = reply_margins(REWARDS, SIGNS, OWNERS, 3)
    assert margins.tolist() == [1 + 2 - 4, 0.0, 8 - 16 - 0.5]
    mean = [(1 + 2) / 2 - 4, 0.0, 8 - (16 + 0.5) / 2]  # of the tokens of each reply: not what the loss is defined on
    assert margins.tolist() != mean


def test_tokens_of_one_pair_need_not_be_neighbours() -> None:
    order = torch.tensor([5, 1, 3, 0, 4, 2])
    shuffled = reply_margins(REWARDS[order], SIGNS[order], OWNERS[order], 3)
    torch.testing.assert_close(shuffled, reply_margins(REWARDS, SIGNS, OWNERS, 3))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_bradley_terry_against_numpy(beta: float) -> None:
    margins = np.array([-1.0, 0.0, 2.5, 30.0])
    expected = np.mean(-np.log(1 / (1 + np.exp(-beta * margins))))
    assert float(bradley_terry(torch.tensor(margins), beta)) == pytest.approx(expected, rel=1e-6)
    assert float(bradley_terry(torch.tensor(-margins), beta)) != pytest.approx(expected, rel=1e-2)  # the wrong sign
    assert float(bradley_terry(torch.tensor(margins), 2 * beta)) != pytest.approx(expected, rel=1e-2)


def test_bradley_terry_at_its_ends() -> None:
    assert float(bradley_terry(torch.zeros(3), 0.1)) == pytest.approx(np.log(2))
    assert float(bradley_terry(torch.tensor([1e4]), 1.0)) == 0.0
    assert float(bradley_terry(torch.tensor([-1e4]), 1.0)) == pytest.approx(1e4)  # neither inf nor NaN


def test_the_gradient_raises_chosen_tokens_and_lowers_rejected_ones() -> None:
    rewards = REWARDS.clone().requires_grad_()
    loss = bradley_terry(reply_margins(rewards, SIGNS, OWNERS, 3), 0.1)
    (gradient,) = torch.autograd.grad(loss, rewards)
    margins = np.array([-1.0, -1.0, -1.0, -8.5, -8.5, -8.5])
    expected = -0.1 / (1 + np.exp(0.1 * margins)) * SIGNS.numpy() / 3  # -beta * sigmoid(-beta m) * sign / pairs
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5)


def _random(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return rewards, torch.randn(n, k, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)


def test_spread_by_hand() -> None:
    rewards, probs = torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    # mean 2.5; variance 0.25 * 1.5^2 + 0.75 * 0.5^2 = 0.75; half of it, and a second position without any
    assert float(spread(rewards, probs.log())) == pytest.approx(0.5 * 0.75 / 2)
    uniform = 0.5 * float(rewards.var(-1, correction=0).mean())  # candidates that weigh alike: not what it is
    assert float(spread(rewards, probs.log())) != pytest.approx(uniform)


def test_spread_knows_no_constant_of_a_position_and_no_sign() -> None:
    rewards, log_probs = _random(5, 7)
    expected = spread(rewards, log_probs)
    shifts = torch.tensor([[-3.0], [0.0], [1.0], [50.0], [2.0]])
    torch.testing.assert_close(spread(rewards + shifts, log_probs), expected)
    torch.testing.assert_close(spread(-rewards, log_probs), expected)
    torch.testing.assert_close(spread(2 * rewards, log_probs), 4 * expected)
    second_moment = 0.5 * (log_probs.exp() * rewards.square()).sum(-1).mean()  # without the mean: knows constants
    assert not torch.isclose(second_moment, expected, rtol=1e-2)


def test_spread_is_the_divergence_of_the_tilted_base_to_second_order() -> None:
    rewards, log_probs = _random(5, 7)
    gaps = []
    for scale in (1e-1, 1e-2, 1e-3):
        tilted = (log_probs + scale * rewards).log_softmax(-1)
        divergence = (log_probs.exp() * (log_probs - tilted)).sum(-1).mean()
        gaps.append(abs(float(divergence / spread(scale * rewards, log_probs)) - 1))
    assert gaps[0] < 0.1
    assert gaps[1] < 0.01
    assert gaps[2] < 0.001


def test_imitation_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0], [2.0, -1.0], [9.0, 9.5]])
    probs = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]])
    signs, imitated = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([True, True, False])
    chosen = 0.25 * np.e / (0.25 * np.e + 0.75)
    rejected = np.exp(-2) / (np.exp(-2) + np.exp(1))  # by the opposite person, who decodes with -R
    expected = -(np.log(chosen) + np.log(rejected)) / 2
    assert float(imitation(rewards, probs.log(), signs, imitated)) == pytest.approx(expected, rel=1e-6)
    assert float(imitation(rewards, probs.log(), signs.abs(), imitated)) != pytest.approx(expected, rel=1e-2)
    assert float(imitation(rewards, probs.log(), signs, imitated | True)) != pytest.approx(expected, rel=1e-2)
    assert float(imitation(rewards, probs.log(), signs, imitated & False)) == 0.0


def test_imitation_of_no_reward_is_the_bases_own_surprise_and_falls_along_its_gradient() -> None:
    rewards, log_probs = _random(5, 7)
    signs, every = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]), torch.ones(5, dtype=torch.bool)
    nothing = torch.zeros_like(rewards).requires_grad_()
    loss = imitation(nothing, log_probs, signs, every)
    torch.testing.assert_close(loss, -log_probs[:, 0].mean())
    (gradient,) = torch.autograd.grad(loss, nothing)
    own = torch.zeros_like(rewards)
    own[:, 0] = 1.0
    torch.testing.assert_close(gradient, signs[:, None] * (log_probs.exp() - own) / 5)

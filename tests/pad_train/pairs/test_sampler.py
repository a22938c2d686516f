"""Replies block by block, each going on from the candidate that the scorer liked, against uncached torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pad_train.pairs import sampler
from pad_train.pairs.feature import Style
from pad_train.pairs.sampler import Draw, sample_replies
from pad_train.pairs.scorer import Scorer
from pad_train.train.backbone import Backbone
from tests.support.sampled_pairs import PROMPTS, feature, pairs_of, sample


def draws_of(backbone: Backbone, texts: Sequence[str]) -> list[Draw]:
    return [
        Draw((tuple(backbone.encode_prompt([{"role": "user", "content": text}])),), (1.0,)) for text in texts
    ]  # fmt: skip


def replies(backbone: Backbone, draws: Sequence[Draw], score: Callable[..., Sequence[float]], **options: Any) -> Any:
    arguments = {"samples": 2, "block": 4, "max_new_tokens": 8} | options
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    arguments.pop("seed", None)
    return sample_replies(backbone, draws, score, generator=generator, **arguments)


def test_one_sample_needs_no_scorer(backbone: Backbone) -> None:
    def never(owners: list[int], texts: list[str]) -> list[float]:
        raise AssertionError

    texts = [reply.text for reply in replies(backbone, draws_of(backbone, PROMPTS[:2]), never, samples=1)]
    assert len(texts) == 2
    assert all(texts)


def test_the_scorer_sees_every_candidate_at_every_block(backbone: Backbone) -> None:
    calls: list[tuple[list[int], list[str]]] = []

    def score(owners: list[int], texts: list[str]) -> list[float]:
        calls.append((owners, texts))
        return [float(index % 3 == 1) for index in range(len(texts))]  # the second candidate of each draw

    result = replies(backbone, draws_of(backbone, PROMPTS[:2]), score, samples=3, block=3)
    assert [owners for owners, _ in calls] == [[0, 0, 0, 1, 1, 1]] * 3  # after 3, 6 and the last token
    for (_, before), (_, after) in itertools.pairwise(calls):
        for index, text in enumerate(after):
            kept = before[1 if index < 3 else 4].rstrip("\N{REPLACEMENT CHARACTER}")
            assert text.startswith(kept)  # all went on from the one that was liked
    last = calls[-1][1]
    assert [reply.text for reply in result] == [last[1], last[4]]


@torch.no_grad()
def test_a_reply_goes_on_exactly_from_the_candidate_kept(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and cached over two rows of unequal length is greedy and uncached over each."""
    monkeypatch.setattr("pad_train.pairs.sampler.TEMPERATURE", 1e-4)
    prompts = [[("the egg", "boils the cook, the egg boils", "no"), 1.0], [("cook cook cook", "", "why?"), -1.0]]
    draws = []
    for texts, gamma in prompts:
        ids = tuple(tuple(backbone.encode_prompt([{"role": "user", "content": text}])) for text in texts)
        draws.append(Draw(ids, (1.0, gamma, -gamma)))
    result = replies(backbone, draws, lambda owners, texts: [float(i % 2) for i in range(len(texts))], block=3)

    def greedy(draw: Draw, coefficients: Sequence[float]) -> str:
        tokens: list[int] = []
        for _ in range(8):
            rows = torch.stack([backbone.model(torch.tensor([[*row, *tokens]])).logits[0, -1] for row in draw.prompts])
            candidates = rows[0].topk(10).indices
            mixed = (rows[:, candidates] * torch.tensor(coefficients)[:, None]).sum(0)
            tokens.append(int(candidates[mixed.argmax()]))
            if tokens[-1] == backbone.eos_id:
                return str(backbone.tokenizer.decode(tokens[:-1], skip_special_tokens=True))
        return str(backbone.tokenizer.decode(tokens, skip_special_tokens=True))

    assert [reply.text for reply in result] == [greedy(draw, draw.coefficients) for draw in draws]
    for reply, draw in zip(result, draws, strict=True):
        assert reply.text != greedy(draw, (1.0, 0.0, 0.0))  # the contrast moved it
        assert reply.text != greedy(
            draw, tuple(-value if index else value for index, value in enumerate(draw.coefficients))
        )


@torch.no_grad()
def test_every_candidate_goes_on_from_the_one_kept(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a choice after every token: what each is drawn from is what its tokens, uncached, would give."""
    draws = [
        replace(draw, prompts=draw.prompts * 2, coefficients=(0.5, 0.25)) for draw in draws_of(backbone, ["a", "b"])
    ]
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    drawn: list[torch.Tensor] = []
    mix, texts = sampler._mix, sampler._texts

    def recorded_mix(*arguments: Any) -> Any:
        steps.append(mix(*arguments))
        return steps[-1]

    def recorded_texts(base: Backbone, tokens: torch.Tensor) -> list[str]:
        drawn.append(tokens)
        return texts(base, tokens)

    monkeypatch.setattr(sampler, "_mix", recorded_mix)
    monkeypatch.setattr(sampler, "_texts", recorded_texts)
    liked = [[0, 2, 1, 0, 1, 2], [1, 0, 2, 2, 1, 0], [0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0]]  # of three, for each draw
    best = [[1, 1, 1, 5, 5, 5], [2, 2, 2, 3, 3, 3], [2, 2, 2, 5, 5, 5]]
    replies(
        backbone, draws, lambda owners, _: [float(value) for value in liked[len(steps) - 1]], samples=3, block=1,
        max_new_tokens=4,
    )  # fmt: skip
    assert any(len(set(tokens[:3, -1].tolist())) > 1 for tokens in drawn[:3])  # there was something to choose
    for step, kept in enumerate(best, start=1):
        candidates, scores = steps[step]
        for index, source in enumerate(kept):
            before = drawn[step - 1][source].tolist()
            logits = backbone.model(torch.tensor([[*draws[index // 3].prompts[0], *before]])).logits[0, -1]
            torch.testing.assert_close(scores[index], 0.75 * logits[candidates[index]], atol=1e-3, rtol=1e-3)


def test_contrast_moves_the_choice(backbone: Backbone, tmp_path: Path) -> None:
    styles = ((Style("boil boil boil", (("egg", "egg"),)), Style("the the")),)
    seen: dict[float, list[str]] = {}
    for contrast in (0.0, 4.0):
        some = feature(styles=styles, samples=1, contrast=contrast)
        sample(backbone, tmp_path / f"{contrast}.jsonl", [some], prompts=PROMPTS[:2], scorer=counting())
        seen[contrast] = [pair.chosen for pair in pairs_of(tmp_path / f"{contrast}.jsonl")]
    assert seen[0.0] != seen[4.0]


def counting() -> Scorer:
    """A scorer that likes whatever comes first, so that every prompt gives a pair."""
    return lambda prompts, texts: [float(len(texts) - index) for index in range(len(texts))]


def test_only_a_reply_that_ended_is_finished(backbone: Backbone, tmp_path: Path) -> None:
    sample(backbone, tmp_path / "cut.jsonl", scorer=counting(), prompts=PROMPTS[:2])
    for pair in pairs_of(tmp_path / "cut.jsonl"):
        assert not pair.chosen_finished
        assert not pair.rejected_finished
    draws = draws_of(backbone, ["x"] * 8)
    often = int(backbone.model(torch.tensor([draws[0].prompts[0]])).logits[0, -1].argmax())
    result = replies(replace(backbone, eos_id=often), draws, lambda _, texts: [0.0] * len(texts))
    assert any(reply.finished for reply in result)
    end = backbone.tokenizer.decode([often])
    assert all(end not in reply.text for reply in result)

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_training
from error_checks import refused
from pad_export.persrm import make_pairs as module
from pad_export.persrm import sampler
from pad_export.persrm.backbone import Backbone
from pad_export.persrm.feature import Feature, Sampling, Style
from pad_export.persrm.make_pairs import make_pairs, plan_tasks, rank_pairs
from pad_export.persrm.pair import Pair
from pad_export.persrm.pair_file import PairSource, read_pairs
from pad_export.persrm.sampler import Draw, Reply, sample_replies
from pad_export.persrm.scorer import Scorer, checked
from pad_runtime.errors import CheckpointError, OptionError

PROMPTS = [f"the egg {number}" for number in range(6)]
SAMPLING = Sampling("test:none", samples=3, block=4, max_new_tokens=12, min_words=0)
SETTINGS = {"batch": 2}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return tiny_training.make_backbone(tmp_path_factory.mktemp("pairs") / "base", num_hidden_layers=1)


@pytest.fixture(autouse=True)
def any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes no words; what a pair needs of them is another test's subject."""
    monkeypatch.setattr(module, "_MIN_DISTINCT", 0.0)


def many_vowels(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [float(sum(reply.count(vowel) for vowel in "aeiou")) for reply in replies]


def length(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [float(len(reply)) for reply in replies]


def feature(name: str = "vowels", **sampling: Any) -> Feature:
    return Feature(name, sampling=replace(SAMPLING, **sampling))


def sample(
    backbone: Backbone, output: Path, features: Sequence[Feature] = (feature(),), scorer: Scorer = many_vowels,
    prompts: Sequence[str] = PROMPTS, seed: int = 0, settings: dict[str, Any] = SETTINGS,
) -> dict[str, int]:  # fmt: skip
    scorers = {entry.name: scorer for entry in features}
    return make_pairs(
        backbone, plan_tasks(prompts, features, batch=2), scorers, output,
        settings=settings, seed=seed, progress=lambda tasks: tasks,
    )  # fmt: skip


def pairs_of(output: Path) -> list[Pair]:
    return read_pairs([PairSource(output)])[0]


# -- sampling -------------------------------------------------------------------------------------------------------


def test_chosen_has_more_of_the_feature(backbone: Backbone, tmp_path: Path) -> None:
    counts = sample(backbone, tmp_path / "pairs.jsonl")
    pairs = pairs_of(tmp_path / "pairs.jsonl")
    assert counts["vowels"] == len(pairs)
    assert len(pairs) >= 8
    assert sum(counts.values()) == 2 * len(PROMPTS)  # more and usual, usual and less: kept, or counted as dropped
    gaps = [many_vowels([""], [pair.chosen])[0] - many_vowels([""], [pair.rejected])[0] for pair in pairs]
    assert min(gaps) > 0
    assert all(pair.weights == {"vowels": 1.0} for pair in pairs)
    assert [pair.messages[0]["content"] for pair in pairs] == sorted(pair.messages[0]["content"] for pair in pairs)
    shared = {pair.rejected for pair in pairs} & {pair.chosen for pair in pairs}
    assert shared  # the usual reply stands between the other two


def test_choosing_block_by_block_tells_the_replies_apart(backbone: Backbone, tmp_path: Path) -> None:
    lengths: dict[int, tuple[float, float]] = {}
    for samples in (1, 6):
        prompts = [f"boil {number}" for number in range(16)]
        output = tmp_path / f"{samples}.jsonl"
        sample(backbone, output, [feature(samples=samples, block=2)], prompts=prompts, scorer=length)
        sides = {pair.chosen for pair in pairs_of(output)}, {pair.rejected for pair in pairs_of(output)}
        usual = sides[0] & sides[1]
        best, worst = (sum(length([], list(side - usual))) / len(side - usual) for side in sides)
        lengths[samples] = best, worst
    assert lengths[6][0] - lengths[6][1] > lengths[1][0] - lengths[1][1] + 2


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
    monkeypatch.setattr("pad_export.persrm.sampler.TEMPERATURE", 1e-4)
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
    styles = ((Style(system="boil boil boil", start="egg egg"), Style(system="the the", start="the")),)
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


def test_what_makes_no_pair_is_counted(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample(backbone, tmp_path / "same.jsonl", scorer=lambda prompts, texts: [1.0] * len(texts))
    assert rows == {"the scorer sees no difference": 12}
    assert (tmp_path / "same.jsonl").read_text() == ""
    rows = sample(backbone, tmp_path / "gap.jsonl", [feature(min_gap=1e5)])
    assert rows == {"the scorer sees no difference": 12}
    assert sample(backbone, tmp_path / "short.jsonl", [feature(min_words=100)]) == {"too short": 12}
    monkeypatch.setattr(module, "_MIN_DISTINCT", 1.1)
    assert sample(backbone, tmp_path / "same again.jsonl") == {"repeats itself": 12}


def test_a_reply_may_be_set_against_its_own_beginning(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a b c d e. f", "a b. c d! e f", "no sentence ends here", "The first? The second. The third"]
    usual = [Reply(text, finished=False) for text in texts]
    styled = [*([Reply("a b c", finished=True)] * 4), *([Reply("a b c d " * 9, finished=False)] * 4)]
    monkeypatch.setattr(module, "sample_replies", lambda *_, samples, **__: usual if samples == 1 else styled)
    short = [feature("short", ends_early=True, min_words=3)]
    prompts = [f"p{index}" for index in range(4)]
    tasks = plan_tasks(prompts, short, batch=4)
    scorers = {"short": lambda prompts, texts: [-float(len(text)) for text in texts]}
    counts = make_pairs(
        backbone, tasks, scorers, tmp_path / "pairs.jsonl", settings={}, seed=0, progress=lambda tasks: tasks
    )
    pairs = [pair for pair in pairs_of(tmp_path / "pairs.jsonl") if pair.rejected.startswith(pair.chosen[:8])]
    pairs = [pair for pair in pairs if pair.chosen != "a b c" and pair.rejected in texts]
    assert [(pair.messages[0]["content"], pair.chosen, pair.rejected) for pair in pairs] == [
        ("p0", "a b c d e.", texts[0]),
        ("p1", "a b. c d!", texts[1]),
        ("p3", "The first? The second.", texts[3]),
    ]
    assert all(pair.chosen_finished and not pair.rejected_finished for pair in pairs)
    assert counts == {"short": 11, "the scorer sees no difference": 1}


def test_all_features_of_some_prompts_come_first() -> None:
    tasks = plan_tasks(PROMPTS[:3], [feature("a"), Feature("unsampled"), feature("b")], batch=2)
    plan = [(task.feature.name, task.prompts) for task in tasks]
    assert plan == [
        ("a", tuple(PROMPTS[:2])), ("b", tuple(PROMPTS[:2])), ("a", (PROMPTS[2],)), ("b", (PROMPTS[2],)),
    ]  # fmt: skip
    assert len({task.key for task in tasks}) == 4


# -- interrupted and repeated ---------------------------------------------------------------------------------------

TWO = (feature(), feature("length", samples=1))


def test_a_seed_gives_the_same_pairs_whatever_was_sampled_before(backbone: Backbone, tmp_path: Path) -> None:
    sample(backbone, tmp_path / "a.jsonl", TWO)
    sample(backbone, tmp_path / "b.jsonl", TWO)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    sample(backbone, tmp_path / "c.jsonl", TWO[1:], prompts=PROMPTS[2:])
    rows, some = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("a.jsonl", "c.jsonl")
    )
    assert some == [row for row in rows if row["weights"] == {"length": 1.0} and row["prompt"] not in PROMPTS[:2]]
    sample(backbone, tmp_path / "d.jsonl", TWO, seed=1)
    assert (tmp_path / "a.jsonl").read_bytes() != (tmp_path / "d.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]


def failing(number: int, error: BaseException) -> Scorer:
    calls = [0]

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        calls[0] += 1
        if calls[0] == number:
            raise error
        return many_vowels(prompts, texts)

    return score


@pytest.mark.parametrize("cut", ["", "half a line", "half a character", "header"])
def test_interrupted_is_uninterrupted(backbone: Backbone, tmp_path: Path, cut: str) -> None:
    sample(backbone, tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        sample(backbone, tmp_path / "pairs.jsonl", scorer=failing(7, KeyboardInterrupt()))
    assert not (tmp_path / "pairs.jsonl").exists()
    partial = tmp_path / "pairs.jsonl.partial"
    data = partial.read_bytes()
    assert data.count(b"\n") == 2  # the settings, and the one batch that was done
    if cut == "half a line":
        partial.write_bytes(data[:-20])
    elif cut == "half a character":
        partial.write_bytes(data + '{"task": "é'.encode()[:-1])
    elif cut == "header":
        partial.write_bytes(data[:30])
    calls: list[int] = []

    def count(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        calls.append(1)
        return many_vowels(prompts, texts)

    counts = sample(backbone, tmp_path / "pairs.jsonl", scorer=count)
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sum(counts.values()) == 2 * len(PROMPTS)
    assert len(calls) == (12 if cut in ("half a line", "header") else 8)  # four a batch; what was done is not repeated
    assert not partial.exists()


@pytest.mark.parametrize("change", ["seed", "settings", "feature"])
def test_other_settings_do_not_go_on(backbone: Backbone, tmp_path: Path, change: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        sample(backbone, tmp_path / "pairs.jsonl", scorer=failing(7, KeyboardInterrupt()))
    before = (tmp_path / "pairs.jsonl.partial").read_bytes()
    changes: dict[str, Any] = {
        "seed": {"seed": 1}, "settings": {"settings": {"batch": 3}}, "feature": {"features": [feature(samples=2)]},
    }[change]  # fmt: skip
    with refused(OptionError, given="pairs.jsonl.partial was begun with other settings", hint="remove it"):
        sample(backbone, tmp_path / "pairs.jsonl", **changes)
    assert (tmp_path / "pairs.jsonl.partial").read_bytes() == before


def test_a_full_disk(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(backbone, tmp_path / "whole.jsonl")
    real, calls = Path.open, [0]

    class Full:
        """A file on a disk with room for half a line."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[: len(text) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        calls[0] += mode == "a"
        file = real(path, mode, *arguments, **options)
        return Full(file) if mode == "a" and calls[0] == 2 else file

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened)
        with refused(CheckpointError, given="pairs.jsonl.partial cannot be written: No space", hint="repeat"):
            sample(backbone, tmp_path / "pairs.jsonl")
    sample(backbone, tmp_path / "pairs.jsonl")
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_scorer_that_does_not_answer_as_it_should(backbone: Backbone, tmp_path: Path) -> None:
    broken = checked("mine.py:score", lambda prompts, texts: [float("nan")] * len(texts))
    with refused(OptionError, given="scorer mine.py:score gave [nan", expected="one finite number each"):
        sample(backbone, tmp_path / "pairs.jsonl", scorer=broken)
    assert not (tmp_path / "pairs.jsonl").exists()


# -- ranking --------------------------------------------------------------------------------------------------------


def test_replies_that_were_given_are_ranked(tmp_path: Path) -> None:
    pairs = [
        Pair(({"role": "user", "content": "p"},), "aa", "bbbb", margins={"old": 1.0}, chosen_finished=False),
        Pair(({"role": "user", "content": "q"},), "aeiou", "a", preference="kind", rejected_finished=False),
        Pair(({"role": "system", "content": "s"}, {"role": "user", "content": "r"}), "xy", "yx"),
    ]
    asked: list[str] = []

    def long(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        asked.extend(prompts)
        return length(prompts, texts)

    features = [feature(), Feature("unsampled"), feature("length", min_gap=2.0)]
    counts = rank_pairs(pairs, features, {"vowels": many_vowels, "length": long}, tmp_path / "ranked.jsonl")
    ranked = pairs_of(tmp_path / "ranked.jsonl")
    assert asked == ["p", "p", "q", "q", "r", "r"]
    assert [(pair.messages[-1]["content"], pair.chosen, dict(pair.weights)) for pair in ranked] == [
        ("p", "aa", {"vowels": 1.0}),
        ("q", "aeiou", {"vowels": 1.0}),
        ("q", "aeiou", {"length": 1.0}),
    ]
    assert counts == {"vowels": 2, "length": 1, "the scorer sees no difference": 3}
    assert [(pair.chosen_finished, pair.rejected_finished) for pair in ranked] == [
        (False, True),
        (True, False),
        (True, False),
    ]
    assert all(pair.preference is None and not pair.margins for pair in ranked)
    other = rank_pairs(pairs[:1], [feature("length")], {"length": length}, tmp_path / "other.jsonl")
    (pair,) = pairs_of(tmp_path / "other.jsonl")
    assert other == {"length": 1}
    assert (pair.chosen, pair.chosen_finished, pair.rejected_finished) == ("bbbb", True, False)  # places changed

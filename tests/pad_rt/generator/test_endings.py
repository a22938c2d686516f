"""How replies end: an id, a stop string, max_new_tokens, max_length; each sequence of a batch by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny_bundles
from guided_models import NUM_TOKENS, PROMPTS, Models, config
from pad_rt import EncodedPrompt, Generator, PadError


def first_time(ids: Sequence[int], *, after: int) -> int:
    """Position of the first id from there on that does not come earlier."""
    return next(place for place in range(after, len(ids)) if ids[place] not in ids[:place])


@pytest.mark.parametrize("preference", [None, "be kind"])
def test_sequences_end_one_by_one(models: Models, tmp_path: Path, preference: str | None) -> None:
    """Two ids that end a reply, at different steps of a batch; the others go on as if alone."""
    tiny_bundles.export(tmp_path / "bundle", models.folder / "base", [models.folder / "plain"])
    endless = tiny_bundles.load(tmp_path / "bundle")
    preferences = [preference] * len(PROMPTS)
    full = [result.token_ids for result in endless.generate_batch(PROMPTS, preferences=preferences, config=config())]
    eos = [full[0][first_time(full[0], after=3)], full[2][first_time(full[2], after=7)]]
    tiny_bundles.set_eos(tmp_path / "bundle", eos)
    generator = tiny_bundles.load(tmp_path / "bundle")
    batch = generator.generate_batch(PROMPTS, preferences=preferences, config=config(), trace=preference is not None)
    lengths = set()
    for ids, result, prompt in zip(full, batch, PROMPTS, strict=True):
        end = next((place for place, token in enumerate(ids) if token in eos), None)
        assert result.token_ids == ids[:end]
        assert result.finish_reason == ("length" if end is None else "stop")
        if preference is not None:
            assert len(result.trace) == (NUM_TOKENS if end is None else end + 1)
        alone = generator.generate(prompt, preference=preference, config=config())
        assert (alone.token_ids, alone.text, alone.finish_reason) == (ids[:end], result.text, result.finish_reason)
        assert "".join(generator.stream(prompt, preference=preference, config=config())) == result.text
        lengths.add(len(result.token_ids))
    assert len(lengths) > 2


def test_a_stop_string_is_found_across_tokens(generator: Generator) -> None:
    checked = 0
    for prompt in PROMPTS:
        for preference in (None, "be kind"):
            settings = config(max_new_tokens=60)
            pieces = list(generator.stream(prompt, preference=preference, config=settings))
            text = "".join(pieces)
            ends = np.cumsum([len(piece) for piece in pieces])[:-1].tolist()
            for end in ends:
                stop = text[end - 2 : end + 2]
                if len(stop) < 4 or "\ufffd" in stop or text.find(stop) != end - 2:
                    continue
                checked += 1
                cut = replace(settings, stop=("never there", stop))
                result = generator.generate(prompt, preference=preference, config=cut)
                assert result.text == text[: end - 2]
                assert result.finish_reason == "stop"
                assert len(result.token_ids) < 60
                assert "".join(generator.stream(prompt, preference=preference, config=cut)) == result.text
                break
            never = generator.generate(prompt, preference=preference, config=replace(settings, stop="never there"))
            assert (never.text, never.finish_reason) == (text, "length")
    assert checked > 3


def test_max_length_ends_a_reply(models: Models, tmp_path: Path) -> None:
    max_length = 40
    plain, base = models.folder / "plain", models.folder / "base"
    tiny_bundles.export(tmp_path / "short", base, [plain], max_length=max_length)
    short = tiny_bundles.load(tmp_path / "short")
    tiny_bundles.export(tmp_path / "long", base, [plain])
    long = tiny_bundles.load(tmp_path / "long")
    for size in (1, 10, max_length - 2, max_length - 1):
        for prompt, preference in (
            (EncodedPrompt(range(1, size + 1), (5, 6)), "x"),
            (EncodedPrompt((7,), range(1, size + 1)), "x"),
            (EncodedPrompt(range(1, size + 1)), None),
        ):
            longest = max(size, len(prompt.reward or ()))
            result = short.generate(prompt, preference=preference, config=config(max_new_tokens=100))
            expected = long.generate(prompt, preference=preference, config=config(max_new_tokens=100))
            assert len(result.token_ids) == max_length - longest
            assert result.finish_reason == "length"
            assert result.token_ids == expected.token_ids[: max_length - longest]
    for prompt in (EncodedPrompt(range(1, max_length + 1), (5,)), EncodedPrompt((5,), range(1, max_length + 1))):
        with pytest.raises(PadError, match="max_length"):
            short.generate(prompt, preference="x")


def test_a_long_prompt_does_not_shorten_its_neighbours(models: Models, tmp_path: Path) -> None:
    """Each sequence of a batch has max_length to itself: a row of a batch is the row alone."""
    base, plain = models.folder / "base", models.folder / "plain"
    prompts = [EncodedPrompt(range(1, 31), range(2, 20)), EncodedPrompt((3, 4), (5,)), EncodedPrompt((9,) * 20, (8,))]
    for dialect in ("ort", "standard"):
        tiny_bundles.export(tmp_path / dialect, base, [plain], max_length=40, dialect=dialect)
        generator = tiny_bundles.load(tmp_path / dialect)
        for preferences in (["x"] * 3, [None] * 3):
            settings = config(max_new_tokens=100)
            batch = generator.generate_batch(prompts, preferences=preferences, config=settings)
            for prompt, preference, result in zip(prompts, preferences, batch, strict=True):
                alone = generator.generate(prompt, preference=preference, config=settings)
                assert result.token_ids == alone.token_ids
                assert result.finish_reason == "length"

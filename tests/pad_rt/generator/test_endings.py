"""How replies end: an id, a stop string, max_new_tokens, max_length; each sequence of a batch by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pad_rt import EncodedPrompt, Generator, PadError
from pad_runtime.errors import OptionError
from tests.support import tiny_bundles
from tests.support.bundle_text import read_tokenizer
from tests.support.error_checks import edit_manifest, refused
from tests.support.guided_models import NUM_TOKENS, PROMPTS, Models, config


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


# -- ends that a caller names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preference", [None, "be kind"])
def test_stop_token_ids_end_a_reply_as_the_bundle_s_own_do(generator: Generator, preference: str | None) -> None:
    full = generator.generate(PROMPTS[0], preference=preference, config=config())
    end = first_time(full.token_ids, after=5)
    ids = [0, full.token_ids[end]]
    result = generator.generate(PROMPTS[0], preference=preference, config=config(stop_token_ids=ids))
    assert (result.token_ids, result.finish_reason) == (full.token_ids[:end], "stop")
    assert full.text.startswith(result.text.rstrip("\ufffd"))
    assert full.finish_reason == "length"
    one = generator.generate(PROMPTS[0], preference=preference, config={"stop_token_ids": ids[1], "top_k": 6})
    assert one.finish_reason == "stop"


def test_stop_token_ids_are_of_the_vocabulary(generator: Generator) -> None:
    size = generator.manifest.vocab_size
    generator.generate("a", config=config(stop_token_ids=[size - 1]))
    with refused(OptionError, given=f"stop_token_ids with {size}", expected=f"ids below {size}, the vocabulary's size"):
        generator.generate("a", config=config(stop_token_ids=[3, size]))


def test_stop_token_ids_are_not_offered(models: Models, tmp_path: Path) -> None:
    """What offer_end offers is in the graph: a named id beside it changes no token before it is chosen."""
    base, plain = models.folder / "base", models.folder / "plain"
    generator = tiny_bundles.load(tiny_bundles.export(tmp_path / "bundle", base, [plain], eos=[2]))
    settings = config(offer_end=True)
    plain_reply = generator.generate(PROMPTS[0], preference="be kind", config=settings)
    unused = next(token for token in range(300) if token not in plain_reply.token_ids)
    named = generator.generate(PROMPTS[0], preference="be kind", config=replace(settings, stop_token_ids=unused))
    assert named.token_ids == plain_reply.token_ids


@pytest.fixture(scope="module")
def hushed(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Generator, Reply]:
    """A bundle in which a token of a reply is special, so that no reader sees it; and that reply."""
    folder = tmp_path_factory.mktemp("hushed") / "bundle"
    tiny_bundles.export(folder, models.folder / "base", [models.folder / "plain"])
    ids = tiny_bundles.load(folder).generate(PROMPTS[0], preference="be kind", config=config()).token_ids
    place = first_time(ids, after=6)
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    content = next(token for token, token_id in fields["model"]["vocab"].items() if token_id == ids[place])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fields["added_tokens"].append({"id": ids[place], "content": content, "special": True, **flags})
    fields["added_tokens"].sort(key=lambda token: token["id"])
    file.write_text(json.dumps(fields), encoding="utf-8")
    edit_manifest(folder, rehash=True)
    generator = tiny_bundles.load(folder)
    text = read_tokenizer(folder).decode(list(ids[:place]), skip_special_tokens=True)
    assert "\ufffd" not in text[-2:]
    return generator, Reply(ids, place, content, text)


@dataclass(frozen=True)
class Reply:
    """Ids, the place of the special one, its text, and what a reader sees before it."""

    ids: tuple[int, ...]
    place: int
    special: str
    before: str


@pytest.mark.parametrize("words", [0, 2])
def test_a_special_token_in_a_stop_string_stops_at_that_token(hushed: tuple[Generator, Reply], words: int) -> None:
    generator, reply = hushed
    stop = reply.before[len(reply.before) - words :] + reply.special
    settings = config(stop=["never there", stop])
    result = generator.generate(PROMPTS[0], preference="be kind", config=settings)
    assert (result.text, result.finish_reason) == (reply.before[: len(reply.before) - words], "stop")
    assert result.token_ids == reply.ids[: reply.place + 1]
    assert "".join(generator.stream(PROMPTS[0], preference="be kind", config=settings)) == result.text
    other = config(stop="x" + stop)  # control: these words are not there
    unstopped = generator.generate(PROMPTS[0], preference="be kind", config=other)
    assert (unstopped.token_ids, unstopped.finish_reason) == (reply.ids, "length")
    assert reply.special not in unstopped.text


def test_an_end_of_turn_may_complete_a_stop_string(hushed: tuple[Generator, Reply]) -> None:
    """The end is written out too: the words before it are cut, although the reply would have ended there anyway."""
    generator, reply = hushed
    ends = config(stop_token_ids=reply.ids[reply.place])
    result = generator.generate(PROMPTS[0], preference="be kind", config=ends)
    assert (result.text, result.finish_reason) == (reply.before, "stop")
    cut = replace(ends, stop=reply.before[-2:] + reply.special)
    assert generator.generate(PROMPTS[0], preference="be kind", config=cut).text == reply.before[:-2]


@pytest.mark.parametrize("preference", [None, "be kind"])
def test_a_reply_that_was_begun_goes_on(models: Models, generator: Generator, preference: str | None) -> None:
    """As the ids of the prompt with the first words behind it would; the reply is what comes behind them."""
    messages = [{"role": "user", "content": "the cook"}, {"role": "assistant", "content": "the egg"}]
    result = generator.generate(messages, preference=preference, config=config())
    tokenizer = read_tokenizer(models.bundle("base"))
    base, reward = (
        tokenizer.encode(f"<s><|user|>{text}<|assistant|>the egg", add_special_tokens=False).ids
        for text in ("the cook", "[Guidelines] Your task is to generate response by considering the following "
                     "principle. [Principles] be kind [Instruction] the cook")
    )  # fmt: skip
    encoded = EncodedPrompt(base, reward if preference else None)
    assert generator.generate(encoded, preference=preference, config=config()).token_ids == result.token_ids
    assert result.usage.prompt_tokens == len(base)
    anew = generator.generate(messages[:1], preference=preference, config=config())
    assert anew.token_ids != result.token_ids

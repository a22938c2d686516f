"""Streams: their pieces are the text, they do not mix, and one left half read gives its rows back."""

from __future__ import annotations

import dataclasses
from itertools import zip_longest

import pytest

from pad_rt import EncodedPrompt, Generator, Usage
from pad_runtime.errors import CancelledError
from tests.support import tiny_bundles
from tests.support.bundle_text import read_tokenizer
from tests.support.guided_models import PREFERENCES, PROMPTS, Models, config


def test_pieces_of_a_stream_are_the_text(models: Models, generator: Generator) -> None:
    """With characters that span tokens, and one that the end cuts off."""
    tokenizer = read_tokenizer(models.bundle("base"))
    for count in (1, 2, 7, 60):
        for preference in (None, "be kind"):
            for prompt in PROMPTS:
                settings = config(max_new_tokens=count)
                pieces = list(generator.stream(prompt, preference=preference, config=settings))
                result = generator.generate(prompt, preference=preference, config=settings)
                assert "".join(pieces) == result.text
                assert len(pieces) <= count + 1
                assert "" not in pieces
                assert result.text == tokenizer.decode(list(result.token_ids), skip_special_tokens=True)


def test_a_stream_that_was_read_to_its_end_has_the_result(generator: Generator) -> None:
    """All that generate gives, and nothing before the end."""
    for preference in (None, "be kind"):
        expected = generator.generate(PROMPTS[0], preference=preference, config=config())
        stream = generator.stream(PROMPTS[0], preference=preference, config=config())
        first = next(stream)
        assert (stream.result, stream.finish_reason, stream.usage) == (None, None, None)
        text = first + "".join(stream)
        assert stream.result is not None
        assert dataclasses.replace(stream.result, timing=expected.timing) == expected
        assert stream.result.text == text
        assert (stream.finish_reason, stream.usage) == (expected.finish_reason, expected.usage)
        assert expected.usage.completion_tokens == len(expected.token_ids)
        assert next(stream, "no more") == "no more"
        assert stream.finish_reason == expected.finish_reason


def test_usage_counts_the_base_s_prompt(generator: Generator) -> None:
    prompt = EncodedPrompt(base=(5, 6, 7), reward=(5, 6, 7, 8, 9))
    assert generator.generate(prompt, preference="x", config=config(max_new_tokens=4)).usage == Usage(3, 4)


def test_a_closed_stream_has_no_result(generator: Generator) -> None:
    stream = generator.stream(PROMPTS[0], config=config())
    next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.result is None


def test_streams_read_in_turns_do_not_mix(generator: Generator) -> None:
    names = ("words", "none", "official head", "words", "several preferences with scales")
    wishes = [(PROMPTS[index % 4], PREFERENCES[name][0]) for index, name in enumerate(names)]
    expected = [
        generator.generate(prompt, preference=preference, config=config()).text for prompt, preference in wishes
    ]
    assert len(set(expected)) == len(expected)
    abandoned = generator.stream(PROMPTS[0], preference="egg", config=config())
    next(abandoned)
    streams = [generator.stream(prompt, preference=preference, config=config()) for prompt, preference in wishes]
    texts = [""] * len(streams)
    for round_ in zip_longest(*streams, fillvalue=""):
        for index, piece in enumerate(round_):
            texts[index] += piece
        if abandoned is not None:
            next(abandoned)
            abandoned.close()
            abandoned = None
    assert texts == expected
    again = [generator.generate(prompt, preference=preference, config=config()).text for prompt, preference in wishes]
    assert again == expected


def test_a_stream_that_is_forgotten_ends_its_reply(models: Models) -> None:
    with tiny_bundles.load(models.bundle("base")) as generator:
        stream = generator.stream(PROMPTS[0], preference="be kind", config=config(max_new_tokens=400))
        next(stream)
        ticket = stream._ticket
        del stream
        with pytest.raises(CancelledError, match="the request was cancelled before its reply ended"):
            ticket.result()

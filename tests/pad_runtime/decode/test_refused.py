"""What a decoder refuses: one line for each, and slots go on as if nothing had been asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pad_runtime.decode.decoder import Decoder
from pad_runtime.errors import OptionError, PromptError
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.row import Reading
from pad_runtime.rows.sequence import MAX_STRENGTH, Controls, SequenceSpec
from tests.support.guided_steps import ask, open_slots, run, step_together


@pytest.mark.parametrize("ids", [[1.5], ["a"], [2**70], [-5], [3, 10**6], "12", np.array([0.5])])
def test_what_is_no_token_id_is_not_read(bundle: Bundle, decoder: Decoder, ids: Any) -> None:
    (asked,) = ask(bundle.manifest, 0, guided=False)
    slot = asked.open(decoder)
    tokens = step_together(decoder, [slot], 3)
    with pytest.raises(PromptError, match=f"to {bundle.manifest.vocab_size - 1}"):
        decoder.read(slot, {0: ids})
    tokens[0] += step_together(decoder, [slot], 3)[0]
    assert tokens == run(bundle.decoder(), [asked], 6)


def test_ids_may_come_in_any_sequence(bundle: Bundle, decoder: Decoder) -> None:
    (asked,) = ask(bundle.manifest, 0, guided=False)
    expected = run(bundle.decoder(), [asked], 4)
    for kind in (list, np.array, lambda ids: np.array(ids, np.int32)):
        slot = decoder.open(asked.sequence, asked.room)
        decoder.read(slot, {0: kind(asked.prompts[0])})
        assert step_together(decoder, [slot], 4) == expected


def sampled(**changes: Any) -> Callable[[SequenceSpec], SequenceSpec]:
    return lambda sequence: replace(sequence, sampling=replace(sequence.sampling, **changes))


def biased(bias: dict[int, float]) -> Callable[[SequenceSpec], SequenceSpec]:
    return lambda sequence: replace(sequence, controls=Controls(bias=bias))


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (sampled(top_k=0), "top_k 0"),
        (sampled(top_k=10**6), "top_k 1000000"),
        (sampled(seed=-1), "seed -1"),
        (sampled(temperature=2 * MAX_STRENGTH), "a temperature of 2e"),
        (sampled(temperature=float("nan")), "a temperature of nan"),
        (biased({-1: 1.0}), "a bias of token -1"),
        (biased({3: 1.0, 10**6: 1.0}), "a bias of token 1000000"),
        (biased({3: float("-inf")}), "a bias of -inf"),
        (
            lambda sequence: replace(sequence, controls=Controls(presence_penalty=-1e26)),
            "a presence penalty of -1e",
        ),
        (
            lambda sequence: replace(sequence, controls=Controls(frequency_penalty=float("nan"))),
            "a frequency penalty of nan",
        ),
        (lambda sequence: replace(sequence, controls=Controls(repetition_penalty=0.0)), "a repetition penalty of 0"),
        (lambda sequence: replace(sequence, readings=(Reading(0, (), 1e30),)), "a reading's strength of 1e"),
        (lambda sequence: replace(sequence, readings=(Reading(0, (1e20,), 1e20),)), "a reading's strength of 1e"),
    ],
)
def test_a_sequence_that_the_bundle_does_not_decode(
    bundle: Bundle, decoder: Decoder, change: Callable[[SequenceSpec], SequenceSpec], given: str
) -> None:
    """However it comes: nothing is lent, and what was there goes on."""
    (asked,) = ask(bundle.manifest, 0, temperature=1.0)
    slot = asked.open(decoder)
    tokens = step_together(decoder, [slot], 2)
    wrong = change(asked.sequence)
    for refused in (
        lambda: decoder.open(wrong, 20),
        lambda: decoder.fork(slot, wrong),
        lambda: decoder.adopt(slot, wrong),
    ):
        with pytest.raises(OptionError, match=given):
            refused()
    assert slot.sequence is asked.sequence
    tokens[0] += step_together(decoder, [slot], 2)[0]
    assert tokens == run(bundle.decoder(), [asked], 4)
    assert decoder.open(asked.sequence, 20).lease.first == [(below, above) for below, above in slot.lease.widths], (
        "it lies behind the one slot"
    )


def test_more_slots_than_max_batch(bundle: Bundle, decoder: Decoder) -> None:
    size = bundle.manifest.max_batch
    slots = open_slots(decoder, ask(bundle.manifest, *[0] * (size + 1), guided=False))
    with pytest.raises(OptionError, match=f"{size + 1} slots in one step; expected at most {size}"):
        decoder.step(slots)
    assert decoder.step(slots[:size]).ids


@pytest.mark.parametrize("stepped", [False, True])
def test_a_mask_of_another_size(bundle: Bundle, decoder: Decoder, stepped: bool) -> None:
    (asked,) = ask(bundle.manifest, 0)
    slot = asked.open(decoder)
    size = -(-bundle.manifest.vocab_size // 8)
    good = np.full(size, 0xFF, np.uint8)
    if stepped:
        decoder.allow(slot, good)
        step_together(decoder, [slot], 2)
    wrong: list[Any] = [good[:-1], good[None], good.astype(np.int64), np.zeros(size, np.uint8)]
    if bundle.manifest.vocab_size % 8:
        wrong.append(np.zeros(size, np.uint8))
        wrong[-1][-1] = 0x80  # of no token
    for packed in wrong:
        with pytest.raises(OptionError, match="allowed"):
            decoder.allow(slot, packed)
    tokens = step_together(decoder, [slot], 2)
    assert tokens[0] == run(bundle.decoder(), [asked], 4)[0][2 * stepped :][:2]


def test_the_cache_of_a_slot_without_one(bundle: Bundle, decoder: Decoder) -> None:
    (asked,) = ask(bundle.manifest, 0)
    slot = asked.open(decoder)
    with pytest.raises(PromptError, match="row 1 of a slot with nothing in the cache"):
        decoder.cache(slot, 1, 0)
    decoder.step([slot])
    assert decoder.cache(slot, 1, 0)[0].shape[1] == len(asked.prompts[1])
    decoder.close(slot)
    with pytest.raises(PromptError, match="closed"):
        decoder.cache(slot, 1, 0)


def test_closing_a_slot_of_another_decoder_does_nothing(bundle: Bundle, decoder: Decoder) -> None:
    (asked,) = ask(bundle.manifest, 0)
    slot, other = asked.open(decoder), bundle.decoder()
    tokens = step_together(decoder, [slot], 2)
    other.close(slot)
    other.open(asked.sequence, 20)
    asked.open(decoder)
    tokens[0] += step_together(decoder, [slot], 2)[0]
    assert tokens == run(bundle.decoder(), [asked], 4)


@pytest.mark.parametrize("value", [1.0, MAX_STRENGTH])
def test_a_token_that_is_not_allowed_is_not_chosen_however_strong_the_rest(bundle: Bundle, value: float) -> None:
    """Nor is a candidate beyond its own top_k: who is beside it changes nothing."""
    packed = np.zeros(-(-bundle.manifest.vocab_size // 8), np.uint8)
    packed[0] = 1 << 7
    for seed in range(4):
        for options in ({"temperature": value}, {"beta": value}, {"beta": -value, "temperature": value}):
            (asked,) = ask(bundle.manifest, 0, top_k=2, seed=seed, **options)
            decoder = bundle.decoder()
            slot = asked.open(decoder)
            decoder.allow(slot, packed)
            assert step_together(decoder, [slot], 5) == [[7] * 5]
            beside = run(bundle.decoder(), [asked, *ask(bundle.manifest, 1, top_k=40)], 5)
            assert beside[0] == run(bundle.decoder(), [asked], 5)[0]

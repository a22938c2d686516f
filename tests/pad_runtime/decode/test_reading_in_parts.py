"""Reading behind a cache: prompts in parts of any size leave the logits and caches that reading at once leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from pad_export.verify.tolerance import INT8_ARITHMETIC
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.reader import Reader
from pad_runtime.decode.slot import Slot
from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.rows.sequence import Sampling, SequenceSpec
from tests.support.decoder_worlds import KINDS, World
from tests.support.torch_oracle import tolerance

ON_CPU = [name for name, kind in KINDS.items() if kind.device == "cpu"]
LENGTHS = (23, 31, 17)  # of the prompts
ROOM = 64  # as many slots as a cache has then
TOP_K = 10
Part = dict[int, int]  # how many tokens of each prompt are read next


def text(prompt: int, length: int) -> list[int]:
    return np.random.default_rng(prompt).integers(0, 300, length).tolist()


def evenly(size: int, num_prompts: int) -> list[Part]:
    """All prompts at the same pace."""
    return [
        {prompt: min(size, LENGTHS[prompt] - start) for prompt in range(num_prompts) if start < LENGTHS[prompt]}
        for start in range(0, max(LENGTHS[:num_prompts]), size)
    ]


def unevenly(seed: int, num_prompts: int) -> list[Part]:
    """Some of the prompts at a time, of each at least two tokens."""
    generator = np.random.default_rng(seed)
    left, parts = list(LENGTHS[:num_prompts]), []
    while any(left):
        part = {}
        for prompt in range(num_prompts):
            size = min(int(generator.integers(2, 9)), left[prompt])
            if size and generator.random() < 0.6:
                part[prompt] = size if left[prompt] - size != 1 else size + 1
        for prompt, size in part.items():
            left[prompt] -= size
        parts.append(part)
    return [part for part in parts if part]


@dataclass(frozen=True)
class Left:
    """What reading has left: keys and values by row and layer [2, kv_heads, length, head_dim], and the first step."""

    caches: dict[tuple[int, int], npt.NDArray[np.float32]]
    trace: SequenceTrace
    id: int


def read(world: World, sequence: SequenceSpec, parts: Sequence[Part], texts: Sequence[Sequence[int]]) -> Left:
    decoder = world.bundle.decoder()
    slot = decoder.open(sequence, ROOM)
    done = [0] * sequence.num_prompts
    for part in parts:
        decoder.read(slot, {prompt: texts[prompt][done[prompt] :][:size] for prompt, size in part.items()})
        done = [start + part.get(prompt, 0) for prompt, start in enumerate(done)]
    assert done == [len(text) for text in texts]
    step = decoder.step([slot], trace=True)
    return Left(caches(world, decoder, slot), step.trace()[0], step.ids[0])


def caches(world: World, decoder: Decoder, slot: Slot) -> dict[tuple[int, int], npt.NDArray[np.float32]]:
    return {
        (number, layer): np.stack(decoder.cache(slot, number, layer))
        for number, row in enumerate(slot.sequence.rows)
        for layer in range(world.bundle.manifest.trunks[row.trunk].num_layers)
    }


def difference(one: Left, other: Left) -> float:
    """Of caches and logits, over the largest of their values."""
    pairs = [(one.caches[key], other.caches[key]) for key in other.caches]
    if one.trace.candidates.tolist() == other.trace.candidates.tolist():
        pairs += [(one.trace.row_logits, other.trace.row_logits), (one.trace.scores, other.trace.scores)]
    else:
        return float("inf")
    return max(float(np.abs(mine - theirs).max() / max(1.0, np.abs(theirs).max())) for mine, theirs in pairs)


def near(world: World) -> float:
    """How far logits and caches may be from those of reading at once."""
    return INT8_ARITHMETIC if world.rounds else tolerance()


def texts_of(sequence: SequenceSpec) -> list[list[int]]:
    return [text(prompt, LENGTHS[prompt]) for prompt in range(sequence.num_prompts)]


def sequences(world: World) -> list[SequenceSpec]:
    """A plain one, one with a reward, and one with several or another."""
    plans = (world.plans[0], world.plans[1], world.plans[-1])
    return [plan.sequence(Sampling(top_k=TOP_K)) for plan in plans]


@pytest.mark.parametrize("name", ON_CPU)
def test_parts_of_any_size_come_to_the_same(load_world: Callable[[str], World], name: str) -> None:
    """To the last bit where no position was read alone: a run of one token has other kernels than one of several."""
    world = load_world(name)
    for sequence in sequences(world):
        texts = texts_of(sequence)
        whole = read(world, sequence, evenly(max(LENGTHS), len(texts)), texts)
        for parts in (
            *(evenly(size, len(texts)) for size in (1, 3, 7)),
            *(unevenly(seed, len(texts)) for seed in range(2)),
        ):
            left = read(world, sequence, parts, texts)
            assert left.id == whole.id
            assert difference(left, whole) < near(world)
            for (number, layer), cache in left.caches.items():
                exact = exact_positions(parts, sequence.rows[number].prompt)
                assert np.array_equal(cache[:, :, exact], whole.caches[number, layer][:, :, exact])


def exact_positions(parts: Sequence[Part], prompt: int) -> list[int]:
    """Positions that were read beside others; a step reads the last one."""
    positions: list[int] = []
    start = 0
    for size in [part[prompt] for part in parts if prompt in part]:
        positions += range(start, start + size) if size > 1 else ()
        start += size
    last = [part[prompt] for part in parts if prompt in part][-1]
    return positions[: -1 if last > 2 else -last] if last > 1 else positions


@pytest.mark.parametrize("name", ON_CPU)
def test_another_token_in_a_part_shows(load_world: Callable[[str], World], name: str) -> None:
    """The control: in the caches from there on, and in the logits."""
    world = load_world(name)
    for sequence in sequences(world)[:2]:
        texts = texts_of(sequence)
        parts = evenly(7, len(texts))
        whole = read(world, sequence, parts, texts)
        for prompt in range(len(texts)):
            changed = [list(text) for text in texts]
            changed[prompt][8] ^= 1
            left = read(world, sequence, parts, changed)
            assert difference(left, whole) > 0.1
            for (number, layer), cache in left.caches.items():
                other = whole.caches[number, layer]
                assert np.array_equal(cache[:, :, :8], other[:, :, :8])
                differs = np.abs(cache[:, :, 8:] - other[:, :, 8:]).max() > 0.01
                assert differs == (sequence.rows[number].prompt == prompt)


@pytest.mark.parametrize("name", ["shared", "pair", "int4"])
def test_group_query_attention_takes_rows_in_turn(
    load_world: Callable[[str], World], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The control: several tokens behind a cache for all rows at once are refused by ONNX Runtime."""
    world = load_world(name)
    sequence = sequences(world)[1]
    real = Reader.__init__
    monkeypatch.setattr(Reader, "__init__", lambda self, binder, **_: real(self, binder, rows_together=True))
    is_refused = pytest.raises(Exception, match="batch_size must be 1")  # ONNX Runtime's own have no base of their own
    with nullcontext() if name == "pair" else is_refused:  # a row on each trunk is one row at a time
        read(world, sequence, evenly(7, sequence.num_prompts), texts_of(sequence))


# -- where a cache ends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_CPU)
def test_a_long_part_beside_a_prompt_that_fills_its_cache(load_world: Callable[[str], World], name: str) -> None:
    """The padding of the short part would lie beyond the cache, and in the next slot's rows."""
    world = load_world(name)
    for sequence in sequences(world)[1:]:
        rest = range(1, sequence.num_prompts)
        parts = [{0: size, **dict.fromkeys(rest, other)} for size, other in ((ROOM - 5, 3), (2, 50), (2, 2))]
        lengths = [sum(part[prompt] for part in parts) for prompt in range(sequence.num_prompts)]
        texts = [text(prompt, length) for prompt, length in enumerate(lengths)]
        whole = read(world, sequence, [dict(enumerate(lengths))], texts)
        assert difference(read(world, sequence, parts, texts), whole) < near(world)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_prompt_that_is_full_stays_as_it_is(load_world: Callable[[str], World], name: str) -> None:
    """Its last token has no place in the cache; while others read on, neither it nor the slot behind it changes."""
    world = load_world(name)
    for sequence in sequences(world)[1:]:
        longest = sequence.num_prompts - 1
        if not longest:
            continue
        decoder = world.bundle.decoder()
        slots = [decoder.open(sequence, ROOM) for _ in range(2)]
        for slot in slots:
            lengths = dict.fromkeys(range(longest), 5)
            decoder.read(slot, {prompt: text(prompt, length) for prompt, length in lengths.items()})
            decoder.read(slot, {longest: text(longest, ROOM - 1)})
        for _ in range(2):
            decoder.step(slots)
        assert slots[0].lengths[longest] == ROOM + 1
        before = [caches(world, decoder, slot) for slot in slots]
        for size in (3, 4):
            decoder.read(slots[0], {prompt: text(9, size) for prompt in range(longest)})
        after = [caches(world, decoder, slot) for slot in slots]
        for slot, was, now in zip(slots, before, after, strict=True):
            for (number, layer), cache in was.items():
                assert np.array_equal(now[number, layer][:, :, : cache.shape[2]], cache), (slots.index(slot), number)

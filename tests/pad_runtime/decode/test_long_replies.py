"""Replies that need more noise than is drawn at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pad_runtime.rows.noise import STEPS_DRAWN
from tests.support.choice_oracle import choose
from tests.support.decoder_worlds import World
from tests.support.guided_steps import Asked

NUM_TOKENS = STEPS_DRAWN + 20


@pytest.mark.parametrize("name", ["shared", "upper layers, standard, backbone", "captured", "engines"])
def test_noise_goes_on_where_a_block_ends(load_world: Callable[[str], World], name: str) -> None:
    """By NumPy before and behind that place; and whoever joins on the way there, forks or goes back behind it."""
    world = load_world(name)
    plans = [world.plans[1], world.plans[0], world.plans[2]]
    options = {"top_k": 12, "temperature": 2.0}
    sequences = [Asked.of(plan, **options, seed=seed).sequence for seed, plan in enumerate(plans)]
    prompts = [
        [[5 + number, 17, 300][: number + 1]] * sequence.num_prompts for number, sequence in enumerate(sequences)
    ]

    decoder = world.host.decoder()
    alone = []
    for sequence, texts in zip(sequences, prompts, strict=True):
        slot = decoder.open(sequence, NUM_TOKENS + 10)
        decoder.read(slot, dict(enumerate(texts)))
        ids = []
        for step in range(NUM_TOKENS):
            weighs = step in range(STEPS_DRAWN - 2, STEPS_DRAWN + 3)
            chosen = decoder.step([slot], trace=weighs)
            ids.append(chosen.ids[0])
            if weighs:
                (trace,) = chosen.trace()
                expected = choose(trace.candidates, trace.scores, sequence.sampling, step)
                assert expected.id == ids[-1] or expected.margin < 1e-3
                shifted = choose(trace.candidates, trace.scores, sequence.sampling, step % STEPS_DRAWN + 1)
                assert shifted.values != expected.values  # control
        alone.append(ids)
        decoder.close(slot)

    decoder = world.bundle.decoder()
    slots = []
    found: list[list[int]] = []
    for sequence, texts in zip(sequences, prompts, strict=True):
        slots.append(decoder.open(sequence, NUM_TOKENS + 10))
        decoder.read(slots[-1], dict(enumerate(texts)))
        found.append([])
        for _ in range(7):
            for ids, id in zip(found, decoder.step(slots).ids, strict=True):
                ids.append(id)
    while len(found[0]) < NUM_TOKENS:
        for ids, id in zip(found, decoder.step(slots).ids, strict=True):
            ids.append(id)
    assert [ids[: len(mine)] for ids, mine in zip(alone, found, strict=True)] == found
    fork = decoder.fork(slots[0])
    decoder.rewind(fork, {number: length - 30 for number, length in enumerate(fork.lengths)})
    assert [decoder.step([fork]).ids[0] for _ in range(30)] == found[0][-30:]

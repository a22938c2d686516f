"""Slots that are saved and restored: they go on as if they had never left, here and in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.saved_slot import SavedSlot
from pad_runtime.decode.slot import Slot
from pad_runtime.errors import OutOfMemoryError, PromptError
from pad_runtime.loaded_bundle import Bundle
from tests.support.error_checks import refused
from tests.support.guided_steps import PROMPTS, Asked, Models, ask, open_slots, run, step_together
from tests.support.torch_oracle import tolerance

NUM_CHOSEN = 7


@pytest.fixture(params=[True, False], ids=["guided", "plain"])
def asked(bundle: Bundle, request: pytest.FixtureRequest) -> Asked:
    return ask(bundle.manifest, 0, guided=request.param)[0]


@pytest.fixture
def slot(decoder: Decoder, asked: Asked) -> Slot:
    """A slot that has chosen some tokens."""
    slot = asked.open(decoder)
    step_together(decoder, [slot], NUM_CHOSEN)
    return slot


def count_runs(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> list[int]:
    """New tokens of each run that is bound from now on."""
    read: list[int] = []
    kind = type(bundle.graph("step"))
    real = kind.bind

    def bind(self: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        read.append(inputs["input_ids"].shape[1])
        return real(self, inputs, *arguments, **options)

    monkeypatch.setattr(kind, "bind", bind)
    return read


def test_a_restored_slot_goes_on_and_computes_nothing_again(
    bundle: Bundle, decoder: Decoder, asked: Asked, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, expected = decoder.save(slot), step_together(decoder, [slot], NUM_CHOSEN)
    read = count_runs(monkeypatch, bundle)
    for other in (bundle.decoder(), decoder):
        restored = other.restore(saved, asked.sequence, asked.room)
        assert restored.lengths == tuple(len(ids) + NUM_CHOSEN for ids in asked.prompts)
        assert read == []
        assert step_together(other, [restored], NUM_CHOSEN) == expected
        assert set(read) == {1}, "one pending token at a time"
        read.clear()


def test_what_is_saved_is_the_slot_s_tokens_and_caches(bundle: Bundle, decoder: Decoder, slot: Slot) -> None:
    saved = decoder.save(slot)
    assert saved.rows == slot.sequence.rows
    assert [list(ids) for ids in saved.ids] == [list(slot.ids(prompt)) for prompt in range(len(saved.ids))]
    assert saved.cached == tuple(length - 1 for length in slot.lengths)
    found = set()
    for number, row in enumerate(saved.rows):
        info = bundle.manifest.trunks[row.trunk]
        at = "" if row.trunk == 0 else f"{info.name}."
        for layer in range(info.num_layers):
            if layer < info.prompt_layers:
                place = slot.sequence.prompts_on(row.trunk).index(row.prompt)
            else:
                place = slot.sequence.rows_on(row.trunk).index(number)
            for kind, array in zip(("key", "value"), decoder.cache(slot, number, layer), strict=True):
                name = f"{at}past_key_values.{layer}.{kind}.{place}"
                assert np.array_equal(saved.caches[name], array)
                found.add(name)
    assert found == saved.caches.keys()


def test_a_part_is_saved_as_of_a_slot_that_was_rewound(bundle: Bundle, decoder: Decoder, slot: Slot) -> None:
    """And the slot goes on as it would have."""
    lengths = {0: 4} | ({1: 0} if len(slot.lengths) > 1 else {})
    part, other = decoder.save(slot, lengths), decoder.fork(slot)
    decoder.rewind(other, lengths)
    rewound = decoder.save(other)
    assert (part.rows, part.ids, part.cached) == (rewound.rows, rewound.ids, rewound.cached)
    assert part.caches.keys() == rewound.caches.keys()
    assert all(np.array_equal(part.caches[name], array) for name, array in rewound.caches.items())
    whole = decoder.save(slot, {0: 10**6})
    assert whole.ids == decoder.save(slot).ids != part.ids


def test_another_turn_behind_a_restored_slot(bundle: Bundle, decoder: Decoder, asked: Asked, slot: Slot) -> None:
    (chosen,) = [list(slot.ids(0))[-NUM_CHOSEN:]]
    other, turn = bundle.decoder(), (30, 31, 32)
    restored = other.restore(decoder.save(slot), asked.sequence, asked.room)
    other.read(restored, dict.fromkeys(range(len(asked.prompts)), turn))
    whole = replace(asked, prompts=tuple((*ids, *chosen, *turn) for ids in asked.prompts))
    assert step_together(other, [restored], 9) == run(bundle.decoder(), [whole], 9)
    without = replace(asked, prompts=tuple((*ids, *turn) for ids in asked.prompts))  # control
    assert step_together(other, [restored], 9) != run(bundle.decoder(), [without], 9)


def test_a_restored_slot_among_others(bundle: Bundle, decoder: Decoder, asked: Asked, slot: Slot) -> None:
    """It joins, is forked, and goes back, as any slot does."""
    saved, expected = decoder.save(slot), step_together(decoder, [slot], NUM_CHOSEN)
    others = ask(bundle.manifest, 1, 2)
    alone = run(bundle.decoder(), others, NUM_CHOSEN)
    restored = decoder.restore(saved, asked.sequence, asked.room)
    assert step_together(decoder, [*open_slots(decoder, others), restored], NUM_CHOSEN) == [*alone, *expected]
    decoder.rewind(restored, {prompt: len(ids) + NUM_CHOSEN for prompt, ids in enumerate(asked.prompts)})
    fork = decoder.fork(restored)
    assert step_together(decoder, [fork, restored], NUM_CHOSEN) == expected * 2


def test_what_is_pending_is_saved_too(bundle: Bundle, decoder: Decoder, asked: Asked) -> None:
    """Nothing read yet, and a prompt with nothing in the cache."""
    empty = decoder.restore(decoder.save(decoder.open(asked.sequence, 9)), asked.sequence, 9)
    assert empty.lengths == (0,) * len(asked.prompts)
    fresh = asked.open(decoder)
    saved = decoder.save(fresh)
    assert (saved.cached, dict(saved.caches)) == ((0,) * len(asked.prompts), {})
    restored = decoder.restore(saved, asked.sequence, asked.room)
    assert step_together(decoder, [restored], 5) == run(bundle.decoder(), [asked], 5)


def test_one_number_that_is_altered_is_in_the_cache(bundle: Bundle, decoder: Decoder, asked: Asked, slot: Slot) -> None:
    """The control: what is restored is what is computed with."""
    saved = decoder.save(slot)
    expected = decoder.step([slot], trace=True).trace()[0]
    for name in ("past_key_values.0.key.0", "past_key_values.1.value.0"):
        altered = saved.caches[name].copy()
        altered[0, 2, 5] += 3.0
        restored = decoder.restore(replace(saved, caches={**saved.caches, name: altered}), asked.sequence, asked.room)
        layer, kind = int(name.split(".")[1]), name.split(".")[2] == "value"
        assert np.array_equal(decoder.cache(restored, 0, layer)[kind], altered)
        found = decoder.step([restored], trace=True).trace()[0]
        worst = np.abs(np.sort(found.base_logits) - np.sort(expected.base_logits)).max()
        assert worst > 100 * tolerance()


def other_type(saved: SavedSlot) -> SavedSlot:
    name = "past_key_values.0.key.0"
    return replace(saved, caches={**saved.caches, name: saved.caches[name].astype(np.float64)})


def shorter(saved: SavedSlot) -> SavedSlot:
    name = "past_key_values.0.key.0"
    return replace(saved, caches={**saved.caches, name: saved.caches[name][:, 1:]})


def without_one(saved: SavedSlot) -> SavedSlot:
    return replace(saved, caches={name: array for name, array in saved.caches.items() if name[-5:] != "key.0"})


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda saved: replace(saved, rows=saved.rows[:1] * 3), "a saved slot of 3 rows"),
        (lambda saved: replace(saved, ids=saved.ids[:-1]), "a saved slot of"),
        (lambda saved: replace(saved, cached=(*saved.cached, 0)), "a saved slot of"),
        (lambda saved: replace(saved, ids=((-1, *saved.ids[0][1:]), *saved.ids[1:])), "a prompt with the token id -1"),
        (lambda saved: replace(saved, cached=(99, *saved.cached[1:])), "99 cached tokens of prompt 0"),
        (lambda saved: replace(saved, cached=(-1, *saved.cached[1:])), "-1 cached tokens of prompt 0"),
        (lambda saved: replace(saved, caches={**saved.caches, "more": np.zeros(1)}), "other caches, such as more"),
        (lambda saved: replace(saved, caches={}), "other caches, such as"),
        (without_one, "other caches, such as past_key_values.0.key.0"),
        (other_type, "past_key_values.0.key.0 as "),
        (shorter, "past_key_values.0.key.0 as "),
    ],
)
def test_what_does_not_go_together_is_refused(
    bundle: Bundle, decoder: Decoder, asked: Asked, slot: Slot, change: Any, given: str
) -> None:
    """And leaves nothing behind."""
    wrong, taken = change(decoder.save(slot)), decoder.open(asked.sequence, 9).lease.first
    with refused(PromptError, given=given):
        decoder.restore(wrong, asked.sequence, asked.room)
    decoder.step([slot])
    assert decoder.open(asked.sequence, 9).lease.first[0][1] == taken[0][1] + slot.lease.widths[0][1]


def test_no_room_and_no_memory(
    bundle: Bundle, decoder: Decoder, asked: Asked, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = decoder.save(slot)
    with refused(PromptError, given=f"a prompt of {max(slot.lengths)} tokens", expected="the room of its sequence"):
        decoder.restore(saved, asked.sequence, max(slot.lengths) - 1)

    def full(*arguments: Any) -> None:
        raise OutOfMemoryError("no memory for a buffer", hint="this is a test")

    other = bundle.decoder()
    with monkeypatch.context() as patch:
        patch.setattr(type(bundle.provider.memory), "zeros", full)
        with refused(OutOfMemoryError, given="no memory for a buffer"):
            other.restore(saved, asked.sequence, asked.room)
    restored = other.restore(saved, asked.sequence, asked.room)
    assert step_together(other, [restored], 3) == step_together(decoder, [slot], 3)


_ELSEWHERE = """
import json, sys
from pathlib import Path
import numpy as np
from pad_runtime.decode.saved_slot import SavedSlot
from tests.support import tiny_bundles
from tests.support.guided_steps import ask, step_together

bundle = tiny_bundles.open_bundle(Path(sys.argv[1]))
(asked,) = ask(bundle.manifest, 0)
with np.load(sys.argv[2]) as file:
    caches = dict(file)
saved = SavedSlot(asked.sequence.rows, *json.loads(sys.argv[3]), caches)
decoder = bundle.decoder()
print(json.dumps(step_together(decoder, [decoder.restore(saved, asked.sequence, asked.room)], 20)))
"""


@pytest.mark.parametrize("kind", ["shared", "pair"])
def test_in_another_process(models: Models, tmp_path: Path, kind: str) -> None:
    bundle = Bundle(models.bundle(kind), device="cpu", num_threads=1)
    decoder = bundle.decoder()
    (asked,) = ask(bundle.manifest, 0)
    slot = asked.open(decoder)
    step_together(decoder, [slot], NUM_CHOSEN)
    saved, file = decoder.save(slot), tmp_path / "caches.npz"
    np.savez(file, **saved.caches)
    known = json.dumps([saved.ids, saved.cached])
    found = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(models.bundle(kind)), str(file), known],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[3],
    )
    assert json.loads(found.stdout) == step_together(decoder, [slot], 20)
    assert len(PROMPTS[0]) == len(saved.ids)

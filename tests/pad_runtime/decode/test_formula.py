"""What a step computes, against torch, a fresh decoder, a slot alone, and the other topology."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.loaded_bundle import Bundle
from tests.support import tiny_bundles
from tests.support.guided_steps import NUM_STEPS, PROMPTS, Models, ask, open_slots, run
from tests.support.torch_oracle import OracleReward, decode, tolerance


@pytest.mark.parametrize("config", [{"beta": 0.0}, {"top_k": 1, "beta": 3.0}])
def test_without_weight_or_choice_it_is_base_greedy(
    bundle: Bundle, decoder: Decoder, models: Models, config: dict[str, Any]
) -> None:
    manifest = bundle.manifest
    ids = run(decoder, ask(manifest, 0, 1, 2, **config))
    assert run(bundle.decoder(), ask(manifest, 0, 1, 2, guided=False)) == ids
    for (prompt, _), found in zip(PROMPTS, ids, strict=True):
        greedy = decode(models.base, prompt, [], beta=1.0, top_k=1, num_tokens=NUM_STEPS)
        assert found == greedy.token_ids
    assert ids != run(decoder, ask(manifest, 0, 1, 2, beta=1.0))


def test_beta_one_over_the_whole_vocabulary_is_persrm_greedy(bundle: Bundle, decoder: Decoder, models: Models) -> None:
    manifest = bundle.manifest
    ids = run(decoder, ask(manifest, 0, 1, 2, top_k=manifest.vocab_size, beta=1.0))
    for (_, prompt), found in zip(PROMPTS, ids, strict=True):
        assert found == decode(models.persrm, prompt, [], beta=1.0, top_k=1, num_tokens=NUM_STEPS).token_ids
    fewer = run(decoder, ask(manifest, 0, 1, 2, top_k=3, beta=1.0))
    assert fewer != ids


def test_cached_is_uncached(bundle: Bundle, decoder: Decoder) -> None:
    """Every step against a fresh reading of the prompt and all ids so far."""
    manifest, fresh = bundle.manifest, bundle.decoder()
    slots = open_slots(decoder, ask(manifest, 0, 1, 2))
    found = list(decoder.step(slots, trace=True).ids)
    ids: list[list[int]] = [[] for _ in PROMPTS]

    def read_anew(prompts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[list[int], list[SequenceTrace]]:
        others = open_slots(fresh, ask(manifest, 0, 1, 2, prompts=prompts))
        chosen = fresh.step(others, trace=True)
        for slot in others:
            fresh.close(slot)
        return list(chosen.ids), chosen.trace()

    for _ in range(12):
        for sequence, token in zip(ids, found, strict=True):
            sequence.append(token)
        grown = [((*base, *new), (*reward, *new)) for (base, reward), new in zip(PROMPTS, ids, strict=True)]
        expected, weighed = read_anew(grown)
        chosen = decoder.step(slots, trace=True)
        found = list(chosen.ids)
        assert found == expected
        assert traces_differ(chosen.trace(), weighed) < tolerance()
    # Control: the same without the newest token.
    _, weighed = read_anew([(base[:-1], reward[:-1]) for base, reward in grown])
    assert traces_differ(chosen.trace(), weighed) > 10 * tolerance()


def traces_differ(one: Sequence[SequenceTrace], other: Sequence[SequenceTrace]) -> float:
    """Worst difference of row logits over all sequences; infinite for other candidates."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if not np.array_equal(a.candidates, b.candidates):
            return math.inf
        worst = max(worst, float(np.abs(a.row_logits - b.row_logits).max() / max(1.0, np.abs(b.row_logits).max())))
    return worst


def test_a_row_of_a_batch_is_the_row_alone(bundle: Bundle, decoder: Decoder) -> None:
    slots = open_slots(decoder, ask(bundle.manifest, 0, 1, 2))
    alone = [bundle.decoder() for _ in PROMPTS]
    singles = [open_slots(each, ask(bundle.manifest, index)) for index, each in enumerate(alone)]
    for _ in range(NUM_STEPS):
        chosen = decoder.step(slots, trace=True)
        together = chosen.trace()
        for index, (each, single) in enumerate(zip(alone, singles, strict=True)):
            expected = each.step(single, trace=True)
            (b,) = expected.trace()
            assert [chosen.ids[index]] == list(expected.ids)
            a, other = together[index], together[(index + 1) % 3]
            np.testing.assert_array_equal(a.candidates, b.candidates)
            np.testing.assert_allclose(a.row_logits, b.row_logits, atol=10 * tolerance())
            assert np.abs(other.row_logits - b.row_logits).max() > 0.1  # control: another sequence's row


def test_shared_is_pair_on_the_same_weights(models: Models) -> None:
    shared, pair = (tiny_bundles.open_bundle(models.bundle(topology)) for topology in ("shared", "pair"))
    one, other = shared.decoder(), pair.decoder()
    slots = open_slots(one, ask(shared.manifest, 0, 1, 2)), open_slots(other, ask(pair.manifest, 0, 1, 2))
    found = []
    for _ in range(NUM_STEPS):
        mine, theirs = one.step(slots[0], trace=True), other.step(slots[1], trace=True)
        assert list(mine.ids) == list(theirs.ids)
        assert traces_differ(mine.trace(), theirs.trace()) < tolerance()
        found.append(list(mine.ids))
    unguided = run(other, ask(pair.manifest, 0, 1, 2, beta=0.0))
    assert [list(ids) for ids in zip(*found, strict=True)] != unguided  # control


def test_the_log_ratio_form_is_the_blended_form(models: Models) -> None:
    """z + beta (log pi_persrm - log pi_base) against (1 - beta) z_base + beta z_persrm, from torch's own logits."""
    shared = tiny_bundles.open_bundle(models.bundle("shared"))
    decoder = shared.decoder()
    for beta in (0.5, 1.0, -0.75, 2.5):
        (trace,) = decoder.step(open_slots(decoder, ask(shared.manifest, 0, beta=beta)), trace=True).trace()
        prompt, reward_prompt = PROMPTS[0]
        log_ratio = decode(
            models.base, prompt, [OracleReward(models.persrm, reward_prompt)], beta=beta, top_k=10, num_tokens=1
        )
        base, persrm = (row.numpy() for row in log_ratio.row_logits[0])
        blended = (1 - beta) * base + beta * persrm
        np.testing.assert_array_equal(trace.candidates, log_ratio.candidates[0])
        np.testing.assert_allclose(trace.scores, blended, atol=10 * tolerance())
        shifted = log_ratio.scores[0].numpy() - blended
        np.testing.assert_allclose(shifted, shifted[0], atol=10 * tolerance())  # a constant, and nothing else
        assert np.abs(trace.scores - (base + beta * persrm)).max() > 0.1  # control: the base counted twice

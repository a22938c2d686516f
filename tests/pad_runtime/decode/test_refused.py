"""What a decoder refuses: one line for each, and slots go on as if nothing had been asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pad_runtime.decode.decoder import Decoder
from pad_runtime.errors import PromptError
from pad_runtime.loaded_bundle import Bundle
from tests.support.guided_steps import ask, run, step_together


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

"""What a decoder takes: whatever a graph would not refuse in one clear line, or not at all."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import OptionError, PromptError
from pad_runtime.rows.sequence import LEAST_FACTOR, MAX_STRENGTH, SequenceSpec


class Limits:
    """Limits of one bundle."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        whole, rest = divmod(manifest.vocab_size, 8)
        self._all_allowed = np.array([0xFF] * whole + [(1 << rest) - 1] * bool(rest), np.uint8)

    def check_sequence(self, sequence: SequenceSpec) -> None:
        """Whether the bundle decodes a sequence.

        Raises:
            OptionError: sampling or controls beyond the vocabulary, the bundle's max_top_k or what float32 can hold.
        """
        sampling, controls, bias = sequence.sampling, sequence.controls, sequence.controls.bias
        if not 1 <= sampling.top_k <= self._manifest.max_top_k:
            raise OptionError(f"top_k {sampling.top_k}", expected=f"1 to {self._manifest.max_top_k}")
        if sampling.seed < 0:
            raise OptionError(f"seed {sampling.seed}", expected="0 or above")
        beyond = [id for id in bias if id not in range(self._manifest.vocab_size)]
        if beyond:
            raise OptionError(f"a bias of token {beyond[0]}", expected=f"ids from 0 to {self._manifest.vocab_size - 1}")
        for name, values in (
            ("temperature", [sampling.temperature]),
            ("bias", bias.values()),
            ("presence penalty", [controls.presence_penalty]),
            ("frequency penalty", [controls.frequency_penalty]),
            ("reading's strength", [reading.strength for reading in sequence.readings]),
        ):
            for value in values:
                if not abs(value) <= MAX_STRENGTH:  # NaN too
                    raise OptionError(f"a {name} of {value:g}", expected=f"at most {MAX_STRENGTH:g}")
        if not LEAST_FACTOR <= controls.repetition_penalty <= MAX_STRENGTH:
            raise OptionError(
                f"a repetition penalty of {controls.repetition_penalty:g}",
                expected=f"{LEAST_FACTOR:g} to {MAX_STRENGTH:g}",
            )

    def check_room(self, room: int) -> None:
        """Whether the bundle has as many positions.

        Raises:
            PromptError: it has not.
        """
        if not 1 <= room <= self._manifest.max_length:
            raise PromptError(f"a room of {room} tokens", expected=f"1 to {self._manifest.max_length}")

    def check_batch(self, count: int) -> None:
        """Whether as many sequences can be stepped together.

        Raises:
            OptionError: they cannot.
        """
        if count > self._manifest.max_batch:
            raise OptionError(
                f"{count} slots in one step", expected=f"at most {self._manifest.max_batch}, the bundle's max_batch"
            )

    def token_ids(self, given: Sequence[int]) -> array[int]:
        """Token ids as a slot keeps them.

        Raises:
            PromptError: there is no such token.
        """
        expected = f"integers from 0 to {self._manifest.vocab_size - 1}"
        try:
            ids = array("q", given)
        except (TypeError, ValueError, OverflowError):
            raise PromptError("a prompt with what is no token id", expected=expected) from None
        for id in (min(ids), max(ids)):
            if not 0 <= id < self._manifest.vocab_size:
                raise PromptError(f"a prompt with the token id {id}", expected=expected)
        return ids

    def allowed(self, packed: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """A copy of packed bits.

        Raises:
            OptionError: they are not a bit for each token, or there is no token among them.
        """
        if packed.dtype != np.uint8 or packed.shape != self._all_allowed.shape:
            raise OptionError(
                f"allowed tokens as {list(packed.shape)} {packed.dtype}",
                expected=f"{list(self._all_allowed.shape)} uint8: a bit for each of {self._manifest.vocab_size} tokens",
            )
        if not (packed & self._all_allowed).any():
            raise OptionError("no token that is allowed", expected="at least one")
        return packed.copy()

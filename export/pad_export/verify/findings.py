"""The differences that a verification found, each with its place, and a diagnosis of all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from pad_export.verify.tolerance import OWN_ERRORS, difference
from pad_runtime.errors import VerificationError

_MAX_REPORTED = 12
_ROUNDING = 10  # times the tolerance: another order of additions may reach that, a wrong graph seldom stays below

Number = Literal["KV", "logits"]
Kind = Literal["tensors", "interface", "KV", "logits", "choice"]
Tolerance = Mapping[tuple[Number, bool], float]  # by the kind of number, and whether it is of a reward row


@dataclass(frozen=True)
class Place:
    """The place of a KV tensor; sorted, places are in the order of a forward pass."""

    trunk: str
    layer: int
    what: str  # keys or values
    of_reward: bool


@dataclass(frozen=True)
class Failure:
    """A difference.

    Attributes:
        kind: "tensors" that torch does not read, the graphs' "interface", numbers ("KV", "logits"), or a "choice".
        text: the difference as a line of a message.
        excess: for numbers, the difference divided by the tolerance.
        place: for a KV tensor, its place.
        permuted: whether a KV tensor holds torch's numbers in another order.
    """

    kind: Kind
    text: str
    excess: float = 0.0
    place: Place | None = None
    permuted: bool = False


@dataclass
class Findings:
    """Every failure, and the worst difference of each kind of number.

    Attributes:
        tolerance: largest difference that is no failure.
        own_error: largest difference between torch in float32 and in float64, where that was measured.
    """

    tolerance: Tolerance
    own_error: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    worst: dict[Number, float] = field(default_factory=lambda: {"logits": 0.0, "KV": 0.0})
    num_compared: int = 0

    def fail(self, kind: Kind, text: str) -> None:
        """Note a failure that is no difference of numbers."""
        self.failures.append(Failure(kind, text))

    def compare_logits(
        self, ours: torch.Tensor, theirs: torch.Tensor, what: str, *, scale: torch.Tensor, of_reward: bool
    ) -> None:
        """Note the difference of a row's logits, as a failure if it is beyond the tolerance.

        `scale` holds the logits of all rows: since the base chooses the candidates, a row's own logits there may all be
        small.
        """
        gap = self._note("logits", ours, theirs, scale)
        tolerance = self.tolerance["logits", of_reward]
        if gap > tolerance:
            self.failures.append(Failure("logits", f"{what} differ by {gap:.1e}", gap / tolerance))

    def compare_cached(self, ours: torch.Tensor, theirs: torch.Tensor, what: str, place: Place) -> None:
        """Note the difference of a KV tensor."""
        gap = self._note("KV", ours, theirs, theirs)
        tolerance = self.tolerance["KV", place.of_reward]
        if gap > tolerance:
            permuted = difference(ours.flatten().sort().values, theirs.flatten().sort().values) <= tolerance
            self.failures.append(Failure("KV", f"{what} differ by {gap:.1e}", gap / tolerance, place, permuted))

    def _note(self, kind: Number, ours: torch.Tensor, theirs: torch.Tensor, scale: torch.Tensor) -> float:
        gap = difference(ours, theirs, scale)
        self.worst[kind] = max(self.worst[kind], gap)
        self.num_compared += 1
        return gap

    def error(self) -> VerificationError:
        """All failures as one error that begins with the diagnosis."""
        shown = "; ".join(failure.text for failure in self.failures[:_MAX_REPORTED])
        more = f"; and {len(self.failures) - _MAX_REPORTED} more" if len(self.failures) > _MAX_REPORTED else ""
        return VerificationError(f"{self._diagnosis()}: {len(self.failures)} differences from torch: {shown}{more}")

    def _diagnosis(self) -> str:
        """The probable cause of the failures, and the first place where it shows."""
        kinds = {failure.kind for failure in self.failures}
        if "tensors" in kinds:
            return "tensors that the torch model does not read"
        if "interface" in kinds:
            return "a graph with other inputs or outputs"
        if "choice" not in kinds and max(self.worst.values()) <= OWN_ERRORS * self.own_error:
            return f"rounding: in float32, torch itself is off by {self.own_error:.1e} here"
        excess = [failure.excess for failure in self.failures if failure.excess]
        if "choice" not in kinds and max(excess) <= _ROUNDING:
            share = len(excess) / self.num_compared
            return (
                f"rounding, by its size (at most {max(excess):.1f} times the tolerance, in {share:.0%} of the tensors)"
            )
        if "KV" in kinds:
            return self._first_layer()
        if "logits" in kinds:
            return "other weights, or another layout of them, after the last layer's KV: all KV tensors agree"
        return (
            "another choice: KV tensors and row logits agree, so what differs is how rows are mixed or a token chosen"
        )

    def _first_layer(self) -> str:
        cached = [(failure.place, failure.permuted) for failure in self.failures if failure.place is not None]
        trunk, layer = min((place.trunk, place.layer) for place, _ in cached)
        here = [(place, permuted) for place, permuted in cached if (place.trunk, place.layer) == (trunk, layer)]
        # Base rows are looked at first: an adapter's part would hide that numbers are torch's in another order.
        shown = [(place, permuted) for place, permuted in here if not place.of_reward] or here
        kinds = {place.what for place, _ in shown}
        what = "keys and values" if len(kinds) > 1 else f"{kinds.pop()} alone"
        rows = "in reward rows alone" if all(place.of_reward for place, _ in here) else "in the base's rows too"
        order = ", the same numbers in another order" if all(permuted for _, permuted in shown) else ""
        return (
            f"other weights, or another layout of them: trunk {trunk} differs from layer {layer} on, "
            f"first in {what}, {rows}{order}"
        )

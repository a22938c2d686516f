"""Replies cut and grouped, so that what one run computes at once fits into a memory that is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pad_runtime.bundle.manifest import Manifest
from pad_runtime.score.request import ScoreRequest


@dataclass(frozen=True)
class Part:
    """Some tokens of a reply that are scored in one run.

    Attributes:
        number: of the request, among those that were given.
        request: what it is of.
        start, stop: the tokens of the reply, `start` to `stop` - 1.
    """

    number: int
    request: ScoreRequest
    start: int
    stop: int

    def __len__(self) -> int:
        """Tokens that are scored."""
        return self.stop - self.start

    def text(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """A prompt and what of the reply is read behind it: all that stands before the last token of the part."""
        return prompt + self.request.reply[: self.stop - 1]

    @property
    def length(self) -> int:
        """Tokens of its longest text."""
        return self.request.longest_prompt + self.stop - 1


@dataclass(frozen=True)
class RunLimits:
    """What one run may come to.

    Attributes:
        positions: tokens that all rows read, padding among them. A text that comes to more is a run by itself.
        floats: numbers that are in memory at once in a layer's attention, and behind the layers: logits over the
            vocabulary with the rows of the lm_head where candidates are looked up. A part has one token at least.
    """

    positions: int = 4096
    floats: int = 2**26


def cut(
    requests: Sequence[ScoreRequest], manifest: Manifest, *, top_k: int, limits: RunLimits
) -> Iterator[tuple[Part, ...]]:
    """Runs that score all tokens of all replies, short texts first.

    A reply with more tokens than `limits` has logits for becomes several parts, each of which reads what stands before
    it again.

    Args:
        requests: what is to be scored.
        manifest: of the bundle.
        top_k: candidates at each token.
        limits: of one run.
    """
    floats = [_floats_per_token(manifest, request, top_k) for request in requests]
    parts = [
        Part(number, request, start, min(start + size, len(request.reply)))
        for number, request in enumerate(requests)
        for size in [max(1, limits.floats // floats[number])]
        for start in range(0, len(request.reply), size)
    ]
    num_heads = max(trunk.num_heads for trunk in manifest.trunks)
    run: list[Part] = []
    num_rows = num_floats = 0
    for part in sorted(parts, key=lambda part: part.length):
        rows, size = _num_rows(manifest, part.request), len(part) * floats[part.number]
        positions = (num_rows + rows) * part.length
        in_attention = positions * part.length * num_heads
        if run and (positions > limits.positions or max(num_floats + size, in_attention) > limits.floats):
            yield tuple(run)
            run, num_rows, num_floats = [], 0, 0
        run.append(part)
        num_rows, num_floats = num_rows + rows, num_floats + size
    if run:
        yield tuple(run)


def _num_rows(manifest: Manifest, request: ScoreRequest) -> int:
    """Rows of a request: the base's, and those of each reward and its reference."""
    references = [manifest.persrms[reward.persrm].reference_trunk for reward in request.rewards]
    return 1 + len(references) + sum(trunk is not None for trunk in references)


def _floats_per_token(manifest: Manifest, request: ScoreRequest, top_k: int) -> int:
    """Numbers that scoring one token takes behind the layers; logits over the vocabulary stand beside their softmax."""
    hidden = max(trunk.hidden_size for trunk in manifest.trunks)
    columns = 1 + sum(len(persrm.features) for persrm in manifest.persrms)
    readings = _num_rows(manifest, request) - 1
    return 2 * manifest.vocab_size + readings * (min(top_k, manifest.vocab_size) + columns) * hidden

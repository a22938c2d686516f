"""What guided decoding costs on this machine: steps of a bundle against steps of its base, taking turns in one process.

    ratio = median PAD step / median base step

Prompts are random token ids: the time of a step does not depend on which tokens it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pad_rt.bench.decoding import Decoding, Side
from pad_rt.bench.rounds import time_turns
from pad_rt.config import GenerationConfig
from pad_rt.generator import Generator
from pad_rt.text.prompt import EncodedPrompt
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import OptionError
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward, RowPlan, plan_rows

WORDS_TOKENS = 32  # that a PersRM's template and a preference in words add to a prompt
_WARMUP = 4  # steps
_STRETCH = 16  # steps of one side in a row, on a device that runs ahead
_LEAD_IN = 2  # of these: the first was done long ago, and the second waits for what the other side left behind


@dataclass(frozen=True)
class Workload:
    """What is decoded: batch 1, greedy, beta 1, the bundle's first PersRM at its default weights.

    Attributes:
        prompt_tokens: of the base's prompt, which the reward rows read too; a PersRM that takes words reads
            `WORDS_TOKENS` more, and a prompt of its own.
        new_tokens: decoded after each prefill.
        top_k: candidates.
        rounds: prefills of each side.
    """

    prompt_tokens: int = 64
    new_tokens: int = 64
    top_k: int = 10
    rounds: int = 3

    def reward_tokens(self, manifest: Manifest) -> int:
        """Tokens of the reward rows' prompt."""
        return self.prompt_tokens + _words_tokens(manifest)

    @property
    def config(self) -> GenerationConfig:
        """The workload as a reply that a `Generator` makes."""
        return GenerationConfig(beta=1.0, top_k=self.top_k, max_new_tokens=self.new_tokens)

    def check(self, manifest: Manifest) -> None:
        """Refuse what this bundle cannot run.

        Raises:
            OptionError: a number outside its range.
        """
        room = manifest.max_length - _words_tokens(manifest)
        for option, value, low, high in (
            ("--prompt-tokens", self.prompt_tokens, 1, room - 2),
            ("--new-tokens", self.new_tokens, 2, room - self.prompt_tokens),
            ("--top-k", self.top_k, 1, manifest.max_top_k),
            ("--rounds", self.rounds, 1, 10_000),
        ):
            if not low <= value <= high:
                raise OptionError(
                    f"{option} {value}",
                    expected=f"{low} to {high} for this bundle" if high >= low else "a bundle with more max_length",
                )

    def prompt(self, manifest: Manifest) -> EncodedPrompt:
        """Random ids, the same ones each time."""
        draw = np.random.default_rng(0).integers
        base = draw(manifest.vocab_size, size=self.prompt_tokens).tolist()
        extra = _words_tokens(manifest)
        reward = draw(manifest.vocab_size, size=self.prompt_tokens + extra).tolist() if extra else base
        return EncodedPrompt(base=base, reward=reward)

    def plan(self, manifest: Manifest, *, guided: bool) -> RowPlan:
        """The prompt as rows of a sequence: all of them, or the base row alone."""
        prompt = self.prompt(manifest)
        weights = tuple(manifest.persrms[0].default_weights)
        rewards = [Reward(0, weights, 1.0, tuple(prompt.reward or ()))] if guided else []
        return plan_rows(manifest, tuple(prompt.base), rewards, 1.0)

    def decoding(self, bundle: Bundle, *, guided: bool, batch: int = 1) -> Decoding:
        """The prompt in a decoder of its own, once or in a batch."""
        return self.decode(bundle, [self.plan(bundle.manifest, guided=guided)] * batch)

    def decode(self, bundle: Bundle, plans: Sequence[RowPlan]) -> Decoding:
        """Any rows in a decoder of their own."""
        return Decoding(bundle.decoder(), plans, new_tokens=self.new_tokens + 1, top_k=self.top_k)


def _words_tokens(manifest: Manifest) -> int:
    return WORDS_TOKENS if manifest.persrms[0].takes_text else 0


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of every prefill and every step, by side, in the order of the rounds."""

    prefill: dict[str, list[float]]
    step: dict[str, list[float]]


def measure_steps(
    sides: Mapping[str, Side],
    workload: Workload,
    *,
    settle: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> StepTimes:
    """Prefill every side and let them decode step by step in turn, `rounds` times.

    A device that runs a step ahead does one side's work while another is timed: there a turn is a stretch of steps,
    whose first are not counted, and a prefill begins when nothing runs.

    Args:
        sides: what is decoded, by name.
        workload: its `rounds` and `new_tokens`.
        settle: waits for the device, where it runs ahead (`settling`).
        clock: seconds.
    """
    stretch = min(_STRETCH, workload.new_tokens) if settle else 1
    lead_in = min(_LEAD_IN, stretch - 1)

    def decode(steps: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        first: dict[str, list[float]] = {}
        for name, side in sides.items():
            if settle:
                settle()
            first |= time_turns({name: side.prefill}, rounds=1, clock=clock)
        calls = {name: side.step for name, side in sides.items()}
        times = time_turns(calls, rounds=max(1, steps // stretch), calls=stretch, clock=clock)
        return first, {
            name: [value for index, value in enumerate(values) if index % stretch >= lead_in]
            for name, values in times.items()
        }

    decode(min(_WARMUP, workload.new_tokens))
    prefill: dict[str, list[float]] = {name: [] for name in sides}
    step: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(workload.rounds):
        for kept, taken in zip((prefill, step), decode(workload.new_tokens), strict=True):
            for name, seconds in taken.items():
                kept[name] += [value * 1e3 for value in seconds]
    return StepTimes(prefill, step)


@dataclass(frozen=True)
class ReplyTimes:
    """Guided replies as a caller gets them.

    Attributes:
        host_us: microseconds a step outside the graph (ids to text, stop strings, the loop), reply by reply.
        tokens_per_s: of one sequence after its first token, as the reader sees them, reply by reply.
        bytes_to_host_per_token: read back from the device.
    """

    host_us: list[float]
    tokens_per_s: list[float]
    bytes_to_host_per_token: int


def measure_replies(generator: Generator, workload: Workload, *, batch: int = 1) -> ReplyTimes:
    """Generate `rounds` guided replies, or batches of them; what lies between the decoder's steps is the host's."""
    prompts, config = [workload.prompt(generator.manifest)] * batch, workload.config
    generator.generate_batch(prompts, config=replace(config, max_new_tokens=2))  # buffers are there from now on
    host_us, tokens_per_s, num_bytes = [], [], 0
    for _ in range(workload.rounds):
        start = time.perf_counter()
        timing = generator.generate_batch(prompts, config=config)[0].timing
        after_first = time.perf_counter() - start - timing.first_token_s
        host_us.append(timing.between_s * 1e6)
        tokens_per_s.append((workload.new_tokens - 1) / after_first)
        num_bytes = timing.bytes_to_host_per_token
    return ReplyTimes(host_us, tokens_per_s, num_bytes)


def settling(bundle: Bundle) -> Callable[[], None] | None:
    """What waits for the device, where a step's ids are given out while it runs the next one; None on a CPU."""
    return None if bundle.provider.device == "cpu" else bundle.provider.memory.synchronize


def open_bundle(folder: Path, *, device: str = "auto", num_threads: int | None = None) -> Bundle:
    """A bundle in which no token ends a reply: on random prompts the end of a turn means nothing.

    Raises:
        BundleError, DeviceError: as `Bundle`.
    """
    bundle = Bundle(folder, device=device, num_threads=num_threads)
    bundle.manifest = replace(bundle.manifest, eos_token_ids=[])
    return bundle

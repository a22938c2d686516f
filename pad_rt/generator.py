"""The generator: text in, guided text out. Three nested loops, one job each: text <- pieces <- token ids."""

from __future__ import annotations

import collections.abc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pad_runtime.bundle import Bundle
from pad_runtime.errors import BundleError, OptionError, PreferenceError, PromptError
from pad_runtime.manifest import Manifest
from pad_runtime.rows import Reward, Row, pad_rows, plan_rows
from pad_runtime.step import Step, StepRequest, StepTrace

from pad_rt.chat_template import ChatTemplate
from pad_rt.config import GenerationConfig
from pad_rt.preference import Preference, PreferenceLike, normalize_preferences
from pad_rt.prompt import EncodedPrompt, Prompt, PromptEncoder
from pad_rt.result import FinishReason, GenerationResult, Timing
from pad_rt.stopping import StopStrings
from pad_rt.stream_decoder import StreamDecoder
from pad_rt.tokenizer import Tokenizer

_MAX_STRENGTH = 1e30  # of coefficients, weights and temperature: times a logit, float32 still holds it


class Generator:
    """Guided decoding with one bundle (PAD, arXiv 2410.04070).

        score(a) = z_base(a) + beta * sum_i w_i * phi_i(a)      a in the base's top k;  next = argmax, or a sample

    Calls may overlap, in threads or as half-read streams: each has a KV cache of its own over the same weights.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        manifest = bundle.manifest
        special = {"bos_token": manifest.tokenizer.bos_token, "eos_token": manifest.tokenizer.eos_token}
        self._tokenizer = Tokenizer(bundle.folder / manifest.tokenizer.file, **special)
        template = None
        if manifest.tokenizer.chat_template:
            template = ChatTemplate(_read_text(bundle.folder / manifest.tokenizer.chat_template), **special)
        self._encoder = PromptEncoder(self._tokenizer, template, vocab_size=manifest.vocab_size)
        self._idle: dict[bool, list[Step]] = {True: [], False: []}  # by whether the step is guided

    @classmethod
    def load(cls, bundle: str | Path, *, device: str = "auto", num_threads: int | None = None) -> Generator:
        """Open a bundle folder written by pad-export.

        Args:
            bundle: the folder.
            device: "auto" or "cpu".
            num_threads: threads inside one operator; None takes the number of physical cores.

        Raises:
            BundleError: the bundle is missing, truncated, altered or inconsistent.
            DeviceError: the device is unknown or not available here.
        """
        generator = cls(Bundle(Path(bundle), device=device, num_threads=num_threads))
        generator._idle[True].append(generator._bundle.guided_step())
        return generator

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds: trunks, PersRMs and their features, limits, versions."""
        return self._bundle.manifest

    def generate(
        self,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: GenerationConfig | None = None,
        trace: bool = False,
    ) -> GenerationResult:
        """Reply to one prompt.

        Args:
            prompt: a string (one user turn), a list of chat messages, or an `EncodedPrompt`.
            preference: None runs the base alone at the base's own cost; text, a `Preference`, or a list of
                (preference, weight) pairs guide it.
            config: beta, top_k and the rest; None takes the paper's defaults.
            trace: also return every step's candidates, row logits and scores.

        Raises:
            PromptError, PreferenceError, OptionError: what was given, what was expected, what to do.
            OutOfMemoryError: the KV cache does not fit.
        """
        return self._run([prompt], [preference], config, trace)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        preferences: Sequence[PreferenceLike] | None = None,
        config: GenerationConfig | None = None,
        trace: bool = False,
    ) -> list[GenerationResult]:
        """Reply to several prompts at once, each with its own preference; sequence i samples from seed + i.

        Raises:
            OptionError: more prompts than the bundle's max_batch, or not one preference a prompt.
            PromptError, PreferenceError, OutOfMemoryError: as `generate`.
        """
        if isinstance(prompts, str):
            raise PromptError("a single string for generate_batch", expected="a list of prompts", hint="use generate")
        if preferences is None:
            preferences = [None] * len(prompts)
        if isinstance(preferences, str) or len(preferences) != len(prompts):
            raise OptionError(f"{len(preferences)} preferences for {len(prompts)} prompts", expected="one for each")
        return self._run(list(prompts), list(preferences), config, trace) if prompts else []

    def stream(
        self, prompt: Prompt, *, preference: PreferenceLike = None, config: GenerationConfig | None = None
    ) -> Iterator[str]:
        """Reply to one prompt piece by piece; joined, they are `generate`'s text. Arguments and errors as there."""
        run = self._prepare([prompt], [preference], config, trace=False)
        return (piece for _, piece in self._pieces(run))

    # -- the three loops ----------------------------------------------------------------------------------------------

    def _run(
        self, prompts: list[Prompt], preferences: list[PreferenceLike], config: GenerationConfig | None, trace: bool
    ) -> list[GenerationResult]:
        """Text: the pieces of every reply, joined."""
        run = self._prepare(prompts, preferences, config, trace=trace)
        texts = [""] * len(prompts)
        for index, piece in self._pieces(run):
            texts[index] += piece
        timing = run.timing()
        return [
            GenerationResult(text, tuple(reply.token_ids), reply.finish_reason, timing, tuple(reply.trace))
            for text, reply in zip(texts, run.replies, strict=True)
        ]

    def _pieces(self, run: _Run) -> Iterator[tuple[int, str]]:
        """Pieces: ids to text that is final, reply by reply, until every reply has ended."""
        waiting = set(range(len(run.replies)))
        with closing(self._token_ids(run)) as steps:
            for ids in steps:
                for index in sorted(waiting):
                    reply = run.replies[index]
                    piece = reply.push(ids[index])
                    if run.last_trace:
                        reply.trace.append(_trace_of(run.last_trace, index))
                    if piece:
                        yield index, piece
                    if reply.ended:
                        waiting.discard(index)
                if not waiting:
                    return

    def _token_ids(self, run: _Run) -> collections.abc.Generator[Sequence[int], None, None]:
        """Token ids: one a sequence and step, as a view that the next step overwrites."""
        clock = time.perf_counter
        with self._step(run.guided) as step:
            start = clock()
            ids = step.prefill(run.request)
            run.prefilled(clock(), started=start, num_bytes=step.bytes_to_host)
            for _ in range(run.request.max_new_tokens - 1):
                if run.request.trace:
                    run.last_trace = step.trace()
                yield ids
                start = clock()
                ids = step.step()
                run.step_times.append(clock() - start)
            if run.request.trace:
                run.last_trace = step.trace()
            yield ids

    @contextmanager
    def _step(self, guided: bool) -> Iterator[Step]:
        """An idle step, or a new one; its buffers serve the next call."""
        idle = self._idle[guided]
        try:
            step = idle.pop()
        except IndexError:
            step = self._bundle.guided_step() if guided else self._bundle.base_step()
        try:
            yield step
        except GeneratorExit:  # the reader has had enough
            idle.append(step)
            raise
        idle.append(step)  # not after an error: its buffers may be half-written

    # -- from text to rows --------------------------------------------------------------------------------------------

    def _prepare(
        self,
        prompts: list[Prompt],
        preferences: list[PreferenceLike],
        config: GenerationConfig | None,
        *,
        trace: bool,
    ) -> _Run:
        """Check everything and turn prompts and preferences into rows."""
        started = time.perf_counter()
        config, manifest = config or GenerationConfig(), self.manifest
        if len(prompts) > manifest.max_batch:
            raise OptionError(
                f"{len(prompts)} prompts at once", expected=f"at most {manifest.max_batch}, the bundle's max_batch"
            )
        if config.top_k > manifest.max_top_k:
            raise OptionError(
                f"top_k {config.top_k}",
                expected=f"at most {manifest.max_top_k}",
                hint="export with a larger --max-top-k" if manifest.max_top_k < manifest.vocab_size else "",
            )
        planned = [
            self._plan(prompt, preference, config) for prompt, preference in zip(prompts, preferences, strict=True)
        ]
        active = tuple(sorted({reward.persrm for _, rewards in planned for reward in rewards}))
        if trace and not active:
            raise OptionError("trace without a preference", hint="the base alone weighs nothing: leave trace out")
        lengths = [max(len(base), *(len(reward.prompt) for reward in rewards), 0) for base, rewards in planned]
        longest = max(lengths)
        if longest >= manifest.max_length:
            raise PromptError(
                f"a prompt of {longest} tokens",
                expected=f"at most {manifest.max_length - 1}: the bundle's max_length, less a token of reply",
                hint="shorten it, or export with a larger --max-length",
            )
        sequences = [plan_rows(manifest, base, rewards, config.beta) for base, rewards in planned]
        _check_strengths(sequences)
        limits = [min(config.max_new_tokens, manifest.max_length - length) for length in lengths]
        request = StepRequest(
            sequences=pad_rows(sequences),
            active=active,
            max_new_tokens=max(limits),
            top_k=config.top_k,
            temperature=min(config.temperature, _MAX_STRENGTH),  # any hotter, and all candidates are as likely
            top_p=config.top_p,
            seeds=tuple(config.seed + index for index in range(len(prompts))),
            trace=trace,
        )
        eos = frozenset(manifest.eos_token_ids)
        replies = [_Reply(eos, limit, self._tokenizer.stream_decoder(), StopStrings(config.stop)) for limit in limits]
        return _Run(request, bool(active), replies, started)

    def _plan(
        self, prompt: Prompt, preference: PreferenceLike, config: GenerationConfig
    ) -> tuple[tuple[int, ...], list[Reward]]:
        """Base prompt and rewards of one sequence."""
        pairs = normalize_preferences(preference)
        if isinstance(prompt, EncodedPrompt) and prompt.reward is not None and not pairs:
            pairs = ((Preference(weights=self._default_weights(0)), 1.0),)  # the ids carry the preference
        rewards = [
            Reward(persrm, weights, scale, self._reward_prompt(prompt, wish, persrm))
            for wish, scale in pairs
            for persrm, weights in self._weights(wish).items()
        ]
        texts = [wish.text for wish, _ in pairs if wish.text]
        if config.base_sees_preference and texts and not isinstance(prompt, EncodedPrompt):
            template = self.manifest.persrms[rewards[0].persrm].prompt_template
            return tuple(self._encoder.encode_with_preference(prompt, "; ".join(texts), template)), rewards
        return tuple(self._encoder.encode(prompt)), rewards

    def _weights(self, preference: Preference) -> dict[int, tuple[float, ...]]:
        """Preference weights by PersRM: features find theirs; words alone go to the first, by its own weights."""
        persrms = self.manifest.persrms
        if not preference.weights:
            return {0: tuple(persrms[0].default_weights)}
        known = {feature: index for index, persrm in enumerate(persrms) for feature in persrm.features}
        for feature in preference.weights:
            if feature not in known:
                raise PreferenceError(
                    f"unknown feature '{feature}'", expected=f"one of {', '.join(known)}, the features of this bundle"
                )
        return {
            index: tuple(preference.weights.get(feature, 0.0) for feature in persrms[index].features)
            for index in sorted({known[feature] for feature in preference.weights})
        }

    def _default_weights(self, persrm: int) -> dict[str, float]:
        info = self.manifest.persrms[persrm]
        return dict(zip(info.features, info.default_weights, strict=True))

    def _reward_prompt(self, prompt: Prompt, preference: Preference, persrm: int) -> tuple[int, ...]:
        """What a reward row reads: the PersRM's template with the preference's words, or the plain prompt."""
        info = self.manifest.persrms[persrm]
        if isinstance(prompt, EncodedPrompt) or preference.text:
            text = preference.text or "given as token ids"
            return tuple(self._encoder.encode_with_preference(prompt, text, info.prompt_template))
        if info.adapter is None and info.head is None and info.trunk == self.manifest.trunks[0].name:
            raise PreferenceError(
                "a preference without text for a bundle without a PersRM",
                expected="words",
                hint="this bundle contrasts the base with and without them",
            )
        return tuple(self._encoder.encode(prompt))


@dataclass
class _Reply:
    """One sequence on its way to text."""

    eos: frozenset[int]
    max_new_tokens: int
    decoder: StreamDecoder
    stop: StopStrings
    token_ids: list[int] = field(default_factory=list)
    trace: list[StepTrace] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    ended: bool = False

    def push(self, token_id: int) -> str:
        """Take one id and return the text it settles."""
        if token_id in self.eos:
            self.ended, self.finish_reason = True, "stop"
            return self.flush()
        self.token_ids.append(token_id)
        piece, stopped = self.stop.push(self.decoder.push(token_id))
        if stopped:
            self.ended, self.finish_reason = True, "stop"
        elif len(self.token_ids) == self.max_new_tokens:
            self.ended = True
            return piece + self.flush()
        return piece

    def flush(self) -> str:
        """Text still held back at the end: it may complete a stop string."""
        piece, stopped = self.stop.push(self.decoder.flush())
        if stopped:
            self.ended, self.finish_reason = True, "stop"
            return piece
        return piece + self.stop.flush()


@dataclass
class _Run:
    """One call: the request, the replies that grow, and the clock."""

    request: StepRequest
    guided: bool
    replies: list[_Reply]
    started: float
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    num_bytes: int = 0
    step_times: list[float] = field(default_factory=list)
    last_trace: StepTrace | None = None

    def prefilled(self, now: float, *, started: float, num_bytes: int) -> None:
        """The first token is there."""
        self.prefill_s, self.first_token_s, self.num_bytes = now - started, now - self.started, num_bytes

    def timing(self) -> Timing:
        """The figures of the whole call."""
        num_tokens = sum(len(reply.token_ids) for reply in self.replies)
        return Timing(
            prefill_s=self.prefill_s,
            first_token_s=self.first_token_s,
            step_s=statistics.median(self.step_times) if self.step_times else 0.0,
            tokens_per_s=num_tokens / (self.prefill_s + sum(self.step_times)),
            bytes_to_host_per_token=self.num_bytes // len(self.replies),
        )


def _check_strengths(sequences: list[list[list[Row]]]) -> None:
    """The mix is computed in float32: what lies beyond would make every score infinite."""
    rows = [row for trunks in sequences for trunk in trunks for row in trunk]
    largest = max(abs(value) for row in rows for value in (row.coefficient, *row.weights))
    if not largest <= _MAX_STRENGTH:
        raise PreferenceError(
            f"a preference of strength {largest:g}",
            expected=f"at most {_MAX_STRENGTH:g}",
            hint="it is the product of beta and the weights: lower them",
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", hint="export the bundle again") from None


def _trace_of(trace: StepTrace, sequence: int) -> StepTrace:
    """The part of a batch's trace that belongs to one sequence."""
    return StepTrace(trace.candidates[sequence], trace.row_logits[sequence], trace.scores[sequence])

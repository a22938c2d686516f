"""The generator: text in, guided text out. Three nested loops, one job each: text <- pieces <- token ids."""

from __future__ import annotations

import collections.abc
import reprlib
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pad_runtime.decode.step import Step, StepRequest, StepTrace

from pad_rt.config import GenerationConfig
from pad_rt.planner import MAX_STRENGTH, RowPlanner
from pad_rt.preference import PreferenceLike
from pad_rt.result import GenerationResult, Timing, Usage
from pad_rt.stream import TextStream
from pad_rt.text.chat_template import ChatTemplate
from pad_rt.text.prompt import EncodedPrompt, Prompt, PromptEncoder, continues_reply
from pad_rt.text.reply import Reply
from pad_rt.text.stopping import StopStrings
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle.held_file import HeldFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.cancellation import Cancellation
from pad_runtime.errors import BundleError, OptionError, PreferenceError, PromptError, not_copied
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.row import Row, pad_rows

_MAX_IDLE = 2  # steps kept with their KV caches for later calls; calls that overlap make more


class Generator:
    """Guided decoding with one bundle (PAD, arXiv 2410.04070).

        score(a) = z_base(a) + beta * sum_i w_i * phi_i(a)      a in the base's top k;  next = argmax, or a sample

    Calls may overlap, in threads or as half-read streams: each has a KV cache of its own over the same weights.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        manifest = bundle.manifest
        special = {"bos_token": manifest.tokenizer.bos_token, "eos_token": manifest.tokenizer.eos_token}
        file = bundle.files[manifest.tokenizer.file]
        self._tokenizer = Tokenizer(file.path, content=file.read(), **special)
        template = None
        if manifest.tokenizer.chat_template:
            template = ChatTemplate(_read_text(bundle.files[manifest.tokenizer.chat_template]), **special)
        encoder = PromptEncoder(
            self._tokenizer, template, vocab_size=manifest.vocab_size, max_length=manifest.max_length
        )
        self._planner = RowPlanner(manifest, encoder)
        self._idle: dict[bool, list[Step]] = {True: [], False: []}  # by whether the step is guided

    @classmethod
    def load(
        cls, bundle: str | Path, *, device: str = "auto", num_threads: int | None = None, check: bool = False
    ) -> Generator:
        """Open a bundle folder written by pad-export, as it is now: what happens to the folder afterwards changes none
        of its tokens.

        Args:
            bundle: the folder.
            device: one of `pad_runtime.devices.choice.DEVICES`; "auto" takes the first that can be used here: the
                bundle's TensorRT engines, CUDA, the CPU.
            num_threads: threads inside one operator; None takes the number of physical cores.
            check: hash every file, the weights too.

        Raises:
            BundleError: the bundle is missing, truncated, altered or inconsistent.
            DeviceError, EngineError: the device is unknown, not available here, or does not run this bundle.
        """
        opened = Bundle(Path(bundle), device=device, num_threads=num_threads, check=check)
        for note in opened.notes:
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        generator = cls(opened)
        generator.open(guided=True)
        return generator

    def open(self, *, guided: bool) -> None:
        """Open the guided graph, or the base's own, ahead of its first use."""
        with self._step(guided):
            pass

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds: trunks, PersRMs and their features, limits, versions."""
        return self._bundle.manifest

    def generate(
        self,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        trace: bool = False,
    ) -> GenerationResult:
        """Reply to one prompt.

        Args:
            prompt: a string (one user turn), a list of chat messages, or an `EncodedPrompt`. Messages are as OpenAI's
                clients send them; of one that the assistant began, the reply is what comes behind its words.
            preference: None runs the base alone at the base's own cost; text, a `Preference`, or a list of
                (preference, weight) pairs guide it.
            config: beta, top_k and the rest, as a `GenerationConfig` or a mapping; None takes the paper's defaults.
            trace: also return every step's candidates, row logits and scores.

        Raises:
            PromptError, PreferenceError, OptionError: what was given, what was expected, what to do.
            OutOfMemoryError: the KV cache does not fit.
            BundleError: a file of the bundle was written to since it was loaded.
        """
        return self._run([prompt], [preference], config, trace)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        preferences: Sequence[PreferenceLike] | None = None,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        trace: bool = False,
    ) -> list[GenerationResult]:
        """Reply to several prompts at once, each with its own preference; sequence i samples from seed + i.

        Raises:
            OptionError: more prompts than the bundle's max_batch, or not one preference a prompt.
            PromptError, PreferenceError, OutOfMemoryError: as `generate`.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            kind = type(prompts).__name__
            raise PromptError(f"a {kind} for generate_batch", expected="a list of prompts", hint="use generate for one")
        if preferences is None:
            preferences = [None] * len(prompts)
        if isinstance(preferences, str) or not isinstance(preferences, Sequence):
            kind = type(preferences).__name__
            raise PreferenceError(f"preferences of type {kind}", expected="a list with one for each prompt")
        if len(preferences) != len(prompts):
            raise OptionError(f"{len(preferences)} preferences for {len(prompts)} prompts", expected="one for each")
        return self._run(list(prompts), list(preferences), config, trace) if prompts else []

    def stream(
        self,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> TextStream:
        """Reply to one prompt piece by piece; joined, they are `generate`'s text. Arguments and errors as there.

        What `generate` returns is the stream's `result`, after the last piece.
        """
        run = self._prepare([prompt], [preference], config, trace=False)
        return TextStream(self._stream(run), run.cancellation)

    def room(
        self,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> int:
        """Tokens of reply that fit behind a prompt; below 1, it is too long itself. Arguments as for `generate`."""
        return self.manifest.max_length - _longest(self._plan(prompt, preference, _make_config(config)))

    def __reduce__(self) -> NoReturn:
        """It belongs to its process.

        Raises:
            PadError: always.
        """
        raise not_copied("a Generator")

    # -- the three loops ----------------------------------------------------------------------------------------------

    def _run(
        self,
        prompts: list[Prompt],
        preferences: list[PreferenceLike],
        config: GenerationConfig | Mapping[str, Any] | None,
        trace: bool,
    ) -> list[GenerationResult]:
        """Text: the pieces of every reply, joined."""
        run = self._prepare(prompts, preferences, config, trace=trace)
        for _ in self._pieces(run):
            pass
        return run.results()

    def _stream(self, run: _Run) -> collections.abc.Generator[str, None, GenerationResult]:
        """Text: the pieces of one reply, and then the whole."""
        with closing(self._pieces(run)) as pieces:
            for _, piece in pieces:
                yield piece
        return run.results()[0]

    def _pieces(self, run: _Run) -> collections.abc.Generator[tuple[int, str], None, None]:
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
            ids = step.prefill(run.request, run.cancellation)
            last = clock()
            run.prefilled(last, started=start, num_bytes=step.bytes_to_host)
            for _ in range(run.request.max_new_tokens - 1):
                if run.request.trace:
                    run.last_trace = step.trace()
                yield ids
                if not step.ahead:  # else the device did not wait: from one step's ids to the next one's
                    last = clock()
                ids = step.step()
                now = clock()
                run.step_times.append(now - last)
                last = now
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
        whole = False
        try:
            yield step
            whole = True
        except GeneratorExit:  # the reader has had enough
            whole = True
            raise
        finally:
            if whole and len(idle) < _MAX_IDLE:  # after an error its buffers may be half-written
                idle.append(step)

    # -- from text to rows --------------------------------------------------------------------------------------------

    def _prepare(
        self,
        prompts: list[Prompt],
        preferences: list[PreferenceLike],
        config: GenerationConfig | Mapping[str, Any] | None,
        *,
        trace: bool,
    ) -> _Run:
        """Check everything and turn prompts and preferences into rows."""
        started = time.perf_counter()
        config, manifest = _make_config(config), self.manifest
        if len(prompts) > manifest.max_batch:
            raise OptionError(
                f"{len(prompts)} prompts at once", expected=f"at most {manifest.max_batch}, the bundle's max_batch"
            )
        num_ends = self._num_ends(config)
        beyond = [id for id in config.stop_token_ids if id >= manifest.vocab_size]
        if beyond:
            raise OptionError(
                f"stop_token_ids with {reprlib.repr(beyond[0])}",
                expected=f"ids below {manifest.vocab_size}, the vocabulary's size",
            )
        sequences = [
            self._plan(prompt, preference, config) for prompt, preference in zip(prompts, preferences, strict=True)
        ]
        asked = any(map(_asks_for_reward, prompts, preferences))
        if trace and not asked:
            raise OptionError("trace without a preference", hint="the base alone weighs nothing: leave trace out")
        # A preference that changes nothing, such as a contrast with the base's own prompt, leaves the base row alone.
        guided = trace or any(sum(map(len, rows)) > 1 for rows in sequences)
        lengths = [_longest(rows) for rows in sequences]
        longest = max(lengths)
        if longest >= manifest.max_length:
            raise PromptError(
                f"a prompt of {longest} tokens",
                expected=f"at most {manifest.max_length - 1}: the bundle's max_length, less a token of reply",
                hint="shorten it, or export with a larger --max-length",
            )
        limits = [min(config.max_new_tokens, manifest.max_length - length) for length in lengths]
        request = StepRequest(
            sequences=pad_rows(sequences),
            max_new_tokens=max(limits),
            top_k=min(config.top_k + num_ends * guided, manifest.vocab_size),
            temperature=min(config.temperature, MAX_STRENGTH),  # any hotter, and all candidates are as likely
            top_p=config.top_p,
            seeds=tuple(config.seed + index for index in range(len(prompts))),
            offer_end=config.offer_end,
            trace=trace,
        )
        ends = frozenset(manifest.eos_token_ids) | frozenset(config.stop_token_ids)
        special = self._tokenizer.special_tokens if config.stop else {}
        replies = [
            Reply(
                eos=ends,
                max_new_tokens=limit,
                prompt_tokens=len(rows[0][0].prompt),
                decoder=self._tokenizer.stream_decoder(has_begun=continues_reply(prompt)),
                stop=StopStrings(config.stop, special.values()),
                special=special,
            )
            for prompt, limit, rows in zip(prompts, limits, sequences, strict=True)
        ]
        return _Run(request, guided, replies, started)

    def _plan(self, prompt: Prompt, preference: PreferenceLike, config: GenerationConfig) -> list[list[Row]]:
        return self._planner.plan(
            prompt,
            preference,
            beta=config.beta,
            base_sees_preference=config.base_sees_preference,
            template_args=config.template_args,
        )

    def _num_ends(self, config: GenerationConfig) -> int:
        """Ends of the turn that are candidates beside the top_k; there is room for all of them."""
        manifest = self.manifest
        num_ends = len(manifest.eos_token_ids) if config.offer_end else 0
        if config.offer_end and not num_ends:
            raise OptionError("offer_end", expected="a base with an end of turn; this bundle's has none")
        if max(config.top_k, min(config.top_k + num_ends, manifest.vocab_size)) > manifest.max_top_k:
            raise OptionError(
                f"top_k {config.top_k}" + f" beside {num_ends} offered ends of turn" * bool(num_ends),
                expected=f"at most {manifest.max_top_k - num_ends}",
                hint="export with a larger --max-top-k" if manifest.max_top_k < manifest.vocab_size else "",
            )
        return num_ends


@dataclass
class _Run:
    """One call: the request, the replies that grow, and the clock."""

    request: StepRequest
    guided: bool
    replies: list[Reply]
    started: float
    cancellation: Cancellation = field(default_factory=Cancellation)
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    num_bytes: int = 0
    step_times: list[float] = field(default_factory=list)
    last_trace: StepTrace | None = None

    def prefilled(self, now: float, *, started: float, num_bytes: int) -> None:
        """The first token is there."""
        self.prefill_s, self.first_token_s, self.num_bytes = now - started, now - self.started, num_bytes

    def results(self) -> list[GenerationResult]:
        """The replies as they are, which have ended."""
        timing = self._timing()
        return [
            GenerationResult(
                text=reply.text,
                token_ids=tuple(reply.token_ids),
                finish_reason=reply.finish_reason,
                usage=Usage(reply.prompt_tokens, len(reply.token_ids)),
                timing=timing,
                trace=tuple(reply.trace),
            )
            for reply in self.replies
        ]

    def _timing(self) -> Timing:
        """The figures of the whole call."""
        num_tokens = sum(len(reply.token_ids) for reply in self.replies)
        return Timing(
            prefill_s=self.prefill_s,
            first_token_s=self.first_token_s,
            step_s=statistics.median(self.step_times) if self.step_times else 0.0,
            tokens_per_s=num_tokens / (self.prefill_s + sum(self.step_times)),
            bytes_to_host_per_token=self.num_bytes // len(self.replies),
        )


def _read_text(file: HeldFile) -> str:
    try:
        return file.read().decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{file.path} cannot be read: {error}", hint="export the bundle again") from None


def _asks_for_reward(prompt: Prompt, preference: PreferenceLike) -> bool:
    return preference is not None or (isinstance(prompt, EncodedPrompt) and prompt.reward is not None)


def _longest(rows: list[list[Row]]) -> int:
    return max(len(row.prompt) for trunk in rows for row in trunk)


def _make_config(config: GenerationConfig | Mapping[str, Any] | None) -> GenerationConfig:
    if config is None:
        return GenerationConfig()
    if isinstance(config, Mapping):
        return GenerationConfig.from_mapping(config)
    if not isinstance(config, GenerationConfig):
        raise OptionError(f"a config of type {type(config).__name__}", expected="a GenerationConfig or a mapping")
    return config


def _trace_of(trace: StepTrace, sequence: int) -> StepTrace:
    """The part of a batch's trace that belongs to one sequence."""
    return StepTrace(trace.candidates[sequence], trace.row_logits[sequence], trace.scores[sequence])

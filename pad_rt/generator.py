"""The generator: text in, guided text out."""

from __future__ import annotations

import time
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from pad_rt.config import MAX_SEED, ConfigLike, make_config
from pad_rt.conversation import Conversation
from pad_rt.engine.engine import Engine
from pad_rt.engine.ticket import Event, Ticket
from pad_rt.history import History
from pad_rt.hub import find_bundle
from pad_rt.planner import RowPlanner
from pad_rt.preference import PreferenceLike, normalize_preferences
from pad_rt.request import Request, RequestMaker, asks_for_reward
from pad_rt.result import GenerationResult
from pad_rt.saved_conversation import SavedConversation
from pad_rt.score.reply_score import ReplyScore
from pad_rt.score.reply_scorer import TRAINING_TOP_K, ReplyScorer
from pad_rt.stream import TextStream
from pad_rt.text.chat_template import ChatTemplate
from pad_rt.text.prompt import Prompt, PromptEncoder, ReplyLike
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle import contract
from pad_runtime.bundle.held_file import HeldFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import BundleError, OptionError, PreferenceError, PromptError, not_copied
from pad_runtime.loaded_bundle import Bundle


class Generator:
    """Guided decoding with one bundle (PAD, arXiv 2410.04070).

        score(a) = z_base(a) + beta * sum_i w_i * phi_i(a)      a in the base's top k;  next = argmax, or a sample

    Calls from any thread share one running batch: a request joins it between two steps, and leaves it when it ends.
    What it generates depends on no other request.

    Args:
        bundle: an open bundle.
        max_waiting: requests that may wait for a place in the batch.
        max_cache_mib: memory for the KV caches of requests that run; None sets no limit but the bundle's max_batch.
        keep_mib: memory for KV caches of replies that ended. A prompt that begins like an earlier one, reply included,
            goes on from there. The latest reply's is kept in any case, until a request runs that has no use for it.
    """

    def __init__(
        self, bundle: Bundle, *, max_waiting: int = 256, max_cache_mib: float | None = None, keep_mib: float = 256
    ) -> None:
        _check_limits(max_waiting, max_cache_mib, keep_mib)
        self._bundle = bundle
        manifest = bundle.manifest
        special = {"bos_token": manifest.tokenizer.bos_token, "eos_token": manifest.tokenizer.eos_token}
        file = bundle.files[manifest.tokenizer.file]
        self._tokenizer = Tokenizer(file.path, content=file.read(), **special)
        template = None
        if manifest.tokenizer.chat_template:
            template = ChatTemplate(_read_text(bundle.files[manifest.tokenizer.chat_template]), **special)
        self._encoder = PromptEncoder(
            self._tokenizer, template, vocab_size=manifest.vocab_size, max_length=manifest.max_length
        )
        planner = RowPlanner(manifest, self._encoder)
        self._scorer = ReplyScorer(bundle, planner, self._encoder, self._tokenizer)
        self._requests = RequestMaker(manifest, planner, self._tokenizer, self._scorer.base_logprobs)
        self._engine = Engine(
            bundle.decoder(),
            max_running=manifest.max_batch,
            max_waiting=max_waiting,
            max_bytes=None if max_cache_mib is None else int(max_cache_mib * 2**20),
            kept_bytes=int(keep_mib * 2**20),
        )

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        device: str = "auto",
        num_threads: int | None = None,
        check: bool = False,
        max_waiting: int = 256,
        max_cache_mib: float | None = None,
        keep_mib: float = 256,
    ) -> Generator:
        """Open a bundle written by pad-export, as it is now: what happens to its folder afterwards changes none of its
        tokens.

        Args:
            bundle: its folder, or as a string OWNER/NAME of a repository on the Hugging Face hub, with @REVISION or
                without; where such a path exists, the string is the path.
            device: one of `pad_runtime.devices.choice.DEVICES`; "auto" takes the first that can be used here: the
                bundle's TensorRT engines, CUDA, the CPU.
            num_threads: threads inside one operator; None takes the number of physical cores.
            check: hash every file, the weights too.
            max_waiting, max_cache_mib, keep_mib: as of the class.

        Raises:
            HubError: there is no such repository, or it cannot be fetched.
            BundleError: the bundle is missing, truncated, altered or inconsistent.
            DeviceError, EngineError: the device is unknown, not available here, or does not run this bundle.
        """
        opened = Bundle(find_bundle(bundle), device=device, num_threads=num_threads, check=check)
        for note in opened.notes:
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        generator = cls(opened, max_waiting=max_waiting, max_cache_mib=max_cache_mib, keep_mib=keep_mib)
        generator.open(guided=True)
        return generator

    def open(self, *, guided: bool) -> None:
        """Open the guided graph, or the base's own, ahead of its first use."""
        self._bundle.graph(contract.STEP_GRAPH if guided else contract.BASE_GRAPH)

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds: trunks, PersRMs and their features, limits, versions."""
        return self._bundle.manifest

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in the batch."""
        return self._engine.num_waiting

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return self._engine.num_running

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without the chat template, with the special tokens that the tokenizer adds.

        Raises:
            PromptError: it is too long for the bundle, or has tokens that the model has not.
        """
        return self._encoder.encode_raw(text)

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, special tokens by their names; of part of a character the bytes."""
        return self._tokenizer.name(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token by itself, special tokens by their names."""
        return self._tokenizer.bytes_of(token_id)

    def generate(
        self,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: ConfigLike = None,
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
        return self._run([prompt], [preference], [config], trace)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        preferences: Sequence[PreferenceLike] | None = None,
        config: ConfigLike = None,
        configs: Sequence[ConfigLike] | None = None,
        trace: bool = False,
    ) -> list[GenerationResult]:
        """Reply to any number of prompts, each with its own preference; the bundle's max_batch run side by side.

        The same prompt several times with a temperature gives several samples: it is read once.

        Args:
            prompts: as `generate` takes them.
            preferences: one for each prompt; None: no preference for any.
            config: for all prompts; sequence i samples from seed + i.
            configs: one for each prompt, with its own seed, instead of `config`.
            trace: as `generate`.

        Raises:
            OptionError: not one preference, or not one config, a prompt.
            PromptError, PreferenceError, OutOfMemoryError: as `generate`; no reply is given then.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            kind = type(prompts).__name__
            raise PromptError(f"a {kind} for generate_batch", expected="a list of prompts", hint="use generate for one")
        if configs is None:
            config = make_config(config)
            configs = [replace(config, seed=_seed(config.seed, number)) for number in range(len(prompts))]
        elif config is not None:
            raise OptionError("config beside configs", expected="one of them")
        if preferences is None:
            preferences = [None] * len(prompts)
        if isinstance(preferences, str) or not isinstance(preferences, Sequence):
            kind = type(preferences).__name__
            raise PreferenceError(f"preferences of type {kind}", expected="a list with one for each prompt")
        for what, given in (("preferences", preferences), ("configs", configs)):
            if isinstance(given, Mapping) or len(given) != len(prompts):
                raise OptionError(f"{len(given)} {what} for {len(prompts)} prompts", expected="one for each")
        return self._run(prompts, preferences, configs, trace)

    def stream(
        self, prompt: Prompt, *, preference: PreferenceLike = None, config: ConfigLike = None, trace: bool = False
    ) -> TextStream:
        """Reply to one prompt piece by piece; joined, they are `generate`'s text. Arguments and errors as there.

        What `generate` returns is the stream's `result`, after the last piece.
        """
        (ticket,) = self._submit([prompt], [preference], [config], trace=trace, wait=True)
        return TextStream(ticket)

    def submit(
        self, prompt: Prompt, *, preference: PreferenceLike = None, config: ConfigLike = None, trace: bool = False
    ) -> Ticket:
        """Queue one request and return at once. Arguments as for `generate`.

        Raises:
            QueueFullError: `max_waiting` requests wait already.
            PromptError, PreferenceError, OptionError: as `generate`; what fails later is raised by the ticket.
        """
        return self.submit_batch([prompt], preferences=[preference], configs=[config], trace=trace)[0]

    def submit_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        preferences: Sequence[PreferenceLike],
        configs: Sequence[ConfigLike],
        trace: bool = False,
    ) -> list[Ticket]:
        """Queue several requests, all or none, and return at once. Arguments as for `generate_batch`.

        Raises:
            QueueFullError: with these, more than `max_waiting` requests would wait.
            OptionError: these alone are more than `max_waiting`.
            PromptError, PreferenceError, OptionError: as `generate`; what fails later is raised by the tickets.
        """
        return self._submit(prompts, preferences, configs, trace=trace, wait=False)

    async def agenerate(
        self, prompt: Prompt, *, preference: PreferenceLike = None, config: ConfigLike = None, trace: bool = False
    ) -> GenerationResult:
        """`generate` for asyncio: other tasks go on meanwhile. A task that is cancelled cancels the request."""
        from pad_rt.engine.tasks import queue, result_of

        (ticket,) = await queue(lambda: self._submit([prompt], [preference], [config], trace=trace, wait=True))
        return await result_of(ticket)

    async def astream(
        self, prompt: Prompt, *, preference: PreferenceLike = None, config: ConfigLike = None
    ) -> AsyncIterator[Event]:
        """The events of one reply, for asyncio. A task that is cancelled, or closes the iterator, cancels it."""
        from pad_rt.engine.tasks import events_of, queue

        tickets = await queue(lambda: self._submit([prompt], [preference], [config], trace=False, wait=True))
        async for arrival in events_of(tickets):
            if arrival is not None:
                yield arrival[1]

    def conversation(
        self, *, system: str | None = None, preference: PreferenceLike = None, config: ConfigLike = None
    ) -> Conversation:
        """Begin a chat that remembers.

        Args:
            system: the system message; None for a chat without one.
            preference, config: of its turns, until others are set; as for `generate`.

        Raises:
            PromptError: the base has no chat template, or its template does not take the system message.
            PreferenceError, OptionError: as `generate`.
        """
        return Conversation(
            self._engine, self._requests, self.manifest, History(system), preference=preference, config=config
        )

    def load_conversation(self, path: str | Path) -> Conversation:
        """Go on with a conversation that was saved; what was saved of its KV cache is not read again.

        Raises:
            ConversationError: there is none, it is truncated or altered, or it is of another bundle.
            PreferenceError, OptionError: a preference or an option that this version has not.
        """
        saved = SavedConversation.read(Path(path), self.manifest)
        return Conversation.of(saved, self._engine, self._requests, self.manifest)

    def room(self, prompt: Prompt, *, preference: PreferenceLike = None, config: ConfigLike = None) -> int:
        """Tokens of reply that fit behind a prompt; below 1, it is too long itself. Arguments as for `generate`."""
        return self.manifest.max_length - self._requests.plan(prompt, preference, make_config(config)).longest

    def score(
        self,
        prompt: Prompt,
        reply: ReplyLike,
        preference: PreferenceLike = None,
        *,
        ended: bool = False,
        top_k: int = TRAINING_TOP_K,
        template_args: Mapping[str, Any] | None = None,
    ) -> ReplyScore:
        """What a reply that is given is worth: how likely the base finds it, and phi of every feature.

        Args:
            prompt: as for `generate`. Behind a message of the assistant the reply is what goes on with its words.
            reply: what the assistant would have written, as text or token ids. A text is tokenized by itself, as in
                training.
            preference: as for `generate`: the PersRMs that it calls on are asked, each on what it reads in decoding,
                and rewards are weighted by it. None asks every PersRM, on the prompt without a preference.
            ended: the end of the turn is scored too, behind the reply.
            top_k: tokens over which phi is normalised, the reply's own among them; the default is that of training.
            template_args: as in `GenerationConfig`.

        Raises:
            PromptError, PreferenceError, OptionError: what was given, what was expected, what to do.
            DeviceError: the device runs engines, and there is none that scores.
            OutOfMemoryError: too little memory to score in.
            BundleError: a file of the bundle was written to since it was loaded.
        """
        return self.score_batch([prompt], [reply], [preference], ended=ended, top_k=top_k, template_args=template_args)[
            0
        ]

    def score_batch(
        self,
        prompts: Sequence[Prompt],
        replies: Sequence[ReplyLike],
        preferences: Sequence[PreferenceLike] | None = None,
        *,
        ended: bool = False,
        top_k: int = TRAINING_TOP_K,
        template_args: Mapping[str, Any] | None = None,
    ) -> list[ReplyScore]:
        """Score any number of replies, each behind its prompt and under its preference; each is worth what it is alone.

        Raises:
            OptionError: not one reply, or not one preference a prompt.
            PromptError, PreferenceError, DeviceError, OutOfMemoryError, BundleError: as `score`.
        """
        return self._scorer.score(
            prompts, replies, preferences, ended=ended, top_k=top_k, template_args=template_args or {}
        )

    def explain(
        self,
        result: GenerationResult,
        prompt: Prompt,
        *,
        preference: PreferenceLike = None,
        config: ConfigLike = None,
    ) -> str:
        """An HTML page that shows what the reward changed, token by token. It loads nothing.

        Args:
            result: what `generate` made of the other arguments, with `trace=True`.
            prompt, preference, config: as they were given to `generate`.

        Raises:
            OptionError: a result without a trace.
            PromptError, PreferenceError: as `generate`.
        """
        from pad_rt.explain.page import make_page

        return make_page(
            result,
            prompt,
            normalize_preferences(preference),
            make_config(config),
            manifest=self.manifest,
            tokenizer=self._tokenizer,
        )

    def close(self) -> None:
        """Cancel all requests and give the memory of all KV caches back; a closed generator takes no requests."""
        self._engine.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """It belongs to its process.

        Raises:
            PadError: always.
        """
        raise not_copied("a Generator")

    # -- requests -----------------------------------------------------------------------------------------------------

    def _run(
        self,
        prompts: Sequence[Prompt],
        preferences: Sequence[PreferenceLike],
        configs: Sequence[ConfigLike],
        trace: bool,
    ) -> list[GenerationResult]:
        """The whole replies; whatever ends this call ends all its requests."""
        tickets = self._submit(prompts, preferences, configs, trace=trace, wait=True)
        try:
            return [ticket.result() for ticket in tickets]
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise

    def _submit(
        self,
        prompts: Sequence[Prompt],
        preferences: Sequence[PreferenceLike],
        configs: Sequence[ConfigLike],
        *,
        trace: bool,
        wait: bool,
        owner: object = None,
    ) -> list[Ticket]:
        """Check everything, turn prompts and preferences into requests, and queue them."""
        called = time.perf_counter()
        requests: list[Request] = [
            self._requests.make(prompt, preference, make_config(config), trace=trace, owner=owner)
            for prompt, preference, config in zip(prompts, preferences, configs, strict=True)
        ]
        if trace and prompts and not any(map(asks_for_reward, prompts, preferences)):
            raise OptionError("trace without a preference", hint="the base alone weighs nothing: leave trace out")
        return self._engine.submit(requests, called, wait=wait)


def _read_text(file: HeldFile) -> str:
    try:
        return file.read().decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{file.path} cannot be read: {error}", hint="export the bundle again") from None


def _seed(first: int, number: int) -> int:
    return (first + number) % MAX_SEED


def _check_limits(max_waiting: int, max_cache_mib: float | None, keep_mib: float) -> None:
    if isinstance(max_waiting, bool) or not isinstance(max_waiting, int) or max_waiting < 1:
        raise OptionError(f"max_waiting={max_waiting!r}", expected="an integer >= 1")
    for name, value in (("max_cache_mib", max_cache_mib), ("keep_mib", keep_mib)):
        is_number = isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < 2**40
        if not is_number and not (value is None and name == "max_cache_mib"):
            raise OptionError(f"{name}={value!r}", expected="a number of MiB, 0 or more")

"""A conversation: a chat that remembers its messages, its preference and its options."""

from __future__ import annotations

import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import EllipsisType, TracebackType

from pad_rt.config import ConfigLike, GenerationConfig, make_config
from pad_rt.engine.engine import Engine
from pad_rt.engine.kept import find_prefix
from pad_rt.history import History
from pad_rt.preference import PreferenceLike
from pad_rt.request import RequestMaker
from pad_rt.result import GenerationResult
from pad_rt.saved_conversation import SavedConversation
from pad_rt.stream import TextStream
from pad_rt.text.chat_template import Message
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.saved_slot import SavedSlot
from pad_runtime.errors import (
    BundleError,
    CancelledError,
    ConversationError,
    OptionError,
    OutOfMemoryError,
    PadError,
    PromptError,
)
from pad_runtime.rows.plan import RowPlan
from pad_runtime.rows.sequence import Sampling

_RESERVE = 1 / 4  # share of max_length that is kept free for a reply by forgetting the oldest turns
_NEVER_STEPPED = Sampling(top_k=1)  # of a slot that another sequence takes over


class Conversation:
    """A chat with a generator's model. Every turn sends all messages; those that are in a KV cache are not read again.

    When the messages leave no room for a reply of `max_new_tokens` (or of a quarter of the bundle's max_length, if that
    is less), the oldest turns are forgotten for good, a message and its reply together, until a further quarter is
    free; the system message is kept. So some turns come and go until what is left is read again.

    A reply that is ended early, by Ctrl-C or because its stream is closed or dropped, is the text so far; without any
    text, the turn is left out. One thread at a time uses a conversation, any number of conversations share a generator.

    Made by `Generator.conversation` and `Generator.load_conversation`.

    Attributes:
        forgotten: turns that were forgotten.
    """

    def __init__(
        self,
        engine: Engine,
        requests: RequestMaker,
        manifest: Manifest,
        history: History,
        *,
        preference: PreferenceLike = None,
        config: ConfigLike = None,
        forgotten: int = 0,
    ) -> None:
        """Begin, or go on with a history.

        Raises:
            PromptError: the base has no chat template, or it does not take the system message, or that is too long.
            PreferenceError, OptionError: as `Generator.generate`.
        """
        if manifest.tokenizer.chat_template is None:
            raise PromptError(
                f"the base {manifest.base} has no chat template",
                expected="a chat model",
                hint="use pad generate, or Generator.generate",
            )
        self._engine, self._requests, self._manifest = engine, requests, manifest
        self._history, self.forgotten = history, forgotten
        self._preference: PreferenceLike = None
        self._config = GenerationConfig()
        self._owner = object()  # of its slots in the engine
        self._reply: weakref.ref[TextStream] | None = None
        self._is_closed = False
        self._guide(preference, make_config(config))

    @classmethod
    def of(cls, saved: SavedConversation, engine: Engine, requests: RequestMaker, manifest: Manifest) -> Conversation:
        """Go on with one that was saved."""
        conversation = cls(
            engine,
            requests,
            manifest,
            saved.history,
            preference=saved.preference,
            config=saved.config,
            forgotten=saved.forgotten,
        )
        if saved.cache is not None:
            conversation._restore_cache(saved.cache)
        return conversation

    # -- turns --------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> GenerationResult:
        """Send a message and wait for the reply.

        Raises:
            PromptError: the message is empty, or does not fit even with all turns forgotten; then none is.
            ConversationError: the conversation was closed.
            CancelledError: it was closed by another thread before the reply ended.
            OptionError, PreferenceError, OutOfMemoryError, BundleError: as `Generator.generate`.
        """
        stream = self.stream(text)
        for _ in stream:
            pass
        if stream.result is None:
            raise CancelledError("a conversation that was closed in the middle of a reply", hint="begin another")
        return stream.result

    def stream(self, text: str) -> TextStream:
        """Send a message; the reply comes piece by piece. Errors as `say`.

        A reply before it that was not read to its end is ended.
        """
        self._settle()
        called = time.perf_counter()
        history = self._history.shortened(text, self._room, reserve=self._reserve, spare=self._spare)
        request = self._requests.make(
            history.prompt(text), self._preference, self._config, trace=False, owner=self._owner
        )
        (ticket,) = self._engine.submit([request], called, wait=True)
        # A message that does not fit was refused above, before any turn was forgotten.
        self.forgotten += len(self._history.turns) - len(history.turns)
        self._history = history

        def remember(reply: str, result: GenerationResult | None) -> None:
            if reply or result:
                self._history = history.then(text, reply)

        stream = TextStream(ticket, remember)
        self._reply = weakref.ref(stream)
        return stream

    def rewind(self, turns: int = 1) -> None:
        """Take back the last turns.

        Raises:
            OptionError: there are not as many.
            ConversationError: the conversation was closed.
        """
        self._settle()
        if isinstance(turns, bool) or turns not in range(self.num_turns + 1):
            raise OptionError(f"rewind({turns!r})", expected=f"0 to {self.num_turns}, the turns of this conversation")
        self._history = self._history.rewound(turns)

    def fork(self, *, preference: PreferenceLike | EllipsisType = ...) -> Conversation:
        """Another conversation with the same messages and options, that goes on by itself.

        Args:
            preference: of the new one; left out, it is this one's.

        Raises:
            ConversationError: the conversation was closed.
            PreferenceError: as `Generator.generate`.
        """
        self._settle()
        return Conversation(
            self._engine,
            self._requests,
            self._manifest,
            self._history,
            preference=self._preference if preference is ... else preference,
            config=self._config,
            forgotten=self.forgotten,
        )

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages, as OpenAI's clients have them. A turn is among them once its reply has ended."""
        return self._history.messages

    @property
    def num_turns(self) -> int:
        """Turns that it remembers."""
        return len(self._history.turns)

    @property
    def preference(self) -> PreferenceLike:
        """Preference of the next turns, which may be set at any time. Other weights read nothing again, other words the
        PersRM's prompt alone.

        Raises:
            PreferenceError: as `Generator.generate`; what was set before stays.
        """
        return self._preference

    @preference.setter
    def preference(self, preference: PreferenceLike) -> None:
        self._guide(preference, self._config)

    @property
    def config(self) -> GenerationConfig:
        """Options of the next turns, which may be set at any time; as a mapping, too.

        Raises:
            OptionError: as `Generator.generate`; what was set before stays.
        """
        return self._config

    @config.setter
    def config(self, config: ConfigLike) -> None:
        self._guide(self._preference, make_config(config))

    # -- its end ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write it to a file, which `Generator.load_conversation` reads. A file that is there is replaced.

        What the generator still has of its messages in the KV cache goes with it, and is not read again.

        Raises:
            ConversationError: the conversation was closed, or the disk does not take the file.
        """
        self._settle()
        SavedConversation(
            history=self._history,
            forgotten=self.forgotten,
            preference=self._preference,
            config=self._config,
            cache=self._save_cache(),
        ).write(Path(path), self._manifest)

    def close(self) -> None:
        """End it, and a reply that is being made, and give back what it has in the KV cache."""
        if self._is_closed:
            return
        self._settle()
        self._is_closed = True
        with suppress(PadError):  # the generator was closed before
            self._engine.run(lambda _: self._engine.kept.forget(self._owner))

    def __enter__(self) -> Conversation:
        """It is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- how ----------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """End a reply that is being made.

        Raises:
            ConversationError: the conversation was closed.
        """
        if self._is_closed:
            raise ConversationError("a conversation that was closed", expected="an open one", hint="begin another")
        stream = self._reply and self._reply()
        if stream:
            stream.close()
        self._reply = None

    def _guide(self, preference: PreferenceLike, config: GenerationConfig) -> None:
        """Take a preference and options for the next turns, if a short message goes with them."""
        shortest = replace(self._history, turns=()).prompt("?")
        if self._requests.plan(shortest, preference, config).longest >= self._manifest.max_length:
            alone = self._requests.plan(shortest, None, config).longest < self._manifest.max_length
            raise PromptError(
                f"a {'preference' if alone else 'system message'} that leaves no room for a chat",
                expected=f"fewer than {self._manifest.max_length} tokens, the bundle's max_length",
                hint="shorten it",
            )
        self._preference, self._config = preference, config

    def _room(self, messages: list[Message]) -> int:
        return self._manifest.max_length - self._requests.plan(messages, self._preference, self._config).longest

    @property
    def _spare(self) -> int:
        return int(self._manifest.max_length * _RESERVE)

    @property
    def _reserve(self) -> int:
        return min(self._config.max_new_tokens, self._spare)

    def _plan(self) -> RowPlan | None:
        """Rows and prompts of its messages; None where there are none, or the template does not go on with a reply."""
        try:
            return self._requests.plan(self.messages, self._preference, self._config)
        except (PromptError, BundleError):
            return None

    def _save_cache(self) -> SavedSlot | None:
        """The most of its messages that is cached, and nothing else: no turns that were taken back."""
        plan = self._plan()
        if plan is None:
            return None
        sequence, kept = plan.sequence(_NEVER_STEPPED), self._engine.kept

        def save(decoder: Decoder) -> SavedSlot | None:
            found = [find_prefix(slot, sequence, plan.prompts) for slot in kept if slot.sequence.rows == plan.rows]
            best = max(found, key=lambda prefix: prefix.num_tokens, default=None)
            return decoder.save(best.slot, best.lengths) if best and best.num_tokens else None

        return self._engine.run(save)

    def _restore_cache(self, cache: SavedSlot) -> None:
        """Have the engine keep what was saved; where it does not fit, the messages are read again."""
        plan = self._plan()
        if plan is None:
            return

        def restore(decoder: Decoder) -> None:
            slot = decoder.restore(cache, plan.sequence(_NEVER_STEPPED), max(map(len, cache.ids), default=0))
            self._engine.kept.put(slot, self._owner)

        with suppress(PromptError, OutOfMemoryError):
            self._engine.run(restore)

"""A chat in the terminal: one line a turn, with commands that change the guidance between turns."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import TypeAlias

from pad_rt.config import GenerationConfig
from pad_rt.generator import Generator
from pad_rt.history import History
from pad_rt.preference import Preference, parse_weight
from pad_rt.text.chat_template import Message
from pad_runtime.command import read_line, show_error
from pad_runtime.errors import OptionError, PadError, PreferenceError, PromptError

FeatureWeights: TypeAlias = dict[str, float]

_HELP = """\
/preference TEXT  guide the next replies by TEXT; without TEXT, by no words
/weight NAME=W    set the weight of a feature of this bundle; without NAME=W, remove all
/beta X           strength of the preference; 0 is the base alone
/reset            forget the messages so far, keep the guidance
/help             show this list
/quit             leave, as Ctrl-D does; Ctrl-C stops a reply
//TEXT            send /TEXT, a message that begins with a slash"""
_PROMPT = "> "
_RESERVE = 1 / 4  # share of max_length that is kept free for a reply by forgetting the oldest turns


class Chat:
    """A conversation, its guidance and its history.

    When the history leaves no room for a reply of `max_new_tokens` (or of a quarter of the bundle's max_length, if that
    is less), the oldest turns are forgotten for good; the system message is kept.

    Replies are printed on stdout, each with a line feed, and everything else on stderr, so that a script can pipe
    messages in and read replies.

    Args:
        generator: makes the replies.
        config: options of every reply.
        preference: the preference at the beginning.
        system: the system message; None for a chat without one.

    Raises:
        PromptError: the base has no chat template, or its template does not take the system message.
    """

    def __init__(
        self,
        generator: Generator,
        config: GenerationConfig,
        preference: Preference | None,
        *,
        system: str | None = None,
    ) -> None:
        if generator.manifest.tokenizer.chat_template is None:
            raise PromptError(
                f"the base {generator.manifest.base} has no chat template",
                expected="a chat model",
                hint="use pad generate",
            )
        self._generator, self._config = generator, config
        self._text = preference.text if preference else None
        self._weights: FeatureWeights = dict(preference.weights) if preference else {}
        self._history = History(system)
        if self._room(self._history.prompt("?")) < 1:
            raise PromptError(
                "a system message that leaves no room for a chat",
                expected=f"fewer than {generator.manifest.max_length} tokens, the bundle's max_length",
                hint="shorten --system",
            )
        self._commands = {
            "/preference": self._set_preference,
            "/weight": self._set_weight,
            "/beta": self._set_beta,
            "/reset": self._reset,
            "/help": self._help,
        }

    def run(self) -> None:
        """Take lines until stdin ends (Ctrl-D) or /quit. An error is printed, and the chat goes on."""
        interactive = sys.stdin is not None and sys.stdin.isatty()
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() its line editing and history
            _note(f"{self._generator.manifest.base}, {self._guidance()}. /help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                line = _read(interactive)
            except EOFError:
                if interactive:
                    _note("")
                return
            except KeyboardInterrupt:
                if not interactive:
                    raise
                _note("")
                continue
            if line == "/quit":
                return
            try:
                self._take(line)
            except PadError as error:
                show_error("pad", error)

    def _take(self, line: str) -> None:
        if line.startswith("//"):
            self._reply(line[1:])
        elif line.startswith("/"):
            name, _, argument = line.partition(" ")
            if name not in self._commands:
                raise OptionError(
                    f"unknown command '{name}'",
                    expected=f"one of {', '.join([*self._commands, '/quit'])}",
                    hint="write // to send a message that begins with /",
                )
            self._commands[name](argument.strip())
        elif line:
            self._reply(line)

    def _reply(self, line: str) -> None:
        """Stream a reply and remember the turn; after Ctrl-C the text so far is the reply."""
        limit = int(self._generator.manifest.max_length * _RESERVE)
        history = self._history.shortened(line, self._room, min(self._config.max_new_tokens, limit))
        # A message that does not fit raises here, before any turn is forgotten.
        stream = self._generator.stream(history.prompt(line), preference=self._preference(), config=self._config)
        forgotten = len(self._history.turns) - len(history.turns)
        if forgotten:
            what = (
                f"{forgotten} oldest turns no longer fit and are"
                if forgotten > 1
                else "oldest turn no longer fits and is"
            )
            _note(f"the {what} forgotten")
        self._history = history
        reply = ""
        try:
            for piece in stream:
                reply += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not reply:
                _note("")
                return
        print(flush=True)
        if stream.result and stream.result.finish_reason == "length":
            _note(stream.result.describe_cut(self._config.max_new_tokens))
        self._history = history.then(line, reply)

    def _room(self, messages: list[Message]) -> int:
        return self._generator.room(messages, preference=self._preference(), config=self._config)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _set_preference(self, text: str) -> None:
        self._text = text or None
        _note(self._guidance())

    def _set_weight(self, argument: str) -> None:
        if argument:
            name, weight = parse_weight(argument)
            known = [feature for persrm in self._generator.manifest.persrms for feature in persrm.features]
            if name not in known:
                raise PreferenceError(f"unknown feature '{name}'", expected=f"one of {', '.join(known)}")
            self._weights[name] = weight
        else:
            self._weights = {}
        _note(self._guidance())

    def _set_beta(self, argument: str) -> None:
        try:
            beta = float(argument)
        except ValueError:
            raise OptionError(f"/beta {argument}".strip(), expected="a number", hint="for example /beta 1.5") from None
        self._config = replace(self._config, beta=beta)
        _note(self._guidance())

    def _reset(self, argument: str) -> None:
        del argument
        self._history = History(self._history.system)
        _note("the chat begins anew")

    def _help(self, argument: str) -> None:
        del argument
        _note(_HELP)

    def _preference(self) -> Preference | None:
        return Preference(text=self._text, weights=self._weights) if self._text or self._weights else None

    def _guidance(self) -> str:
        """The guidance of the next reply, as a line for the user."""
        parts = [f'preference "{self._text}"'] if self._text else []
        parts += [f"{name} {weight:g}" for name, weight in self._weights.items()]
        return f"{', '.join(parts) or 'no preference'}, beta {self._config.beta:g}"


def _read(interactive: bool) -> str:
    """The next line that was typed or piped in."""
    line = input(_PROMPT) if interactive else read_line()
    if not line and not interactive:
        raise EOFError
    return line.strip()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

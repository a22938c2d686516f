"""A chat in the terminal: one line a turn, with commands that change the guidance between turns."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pad_rt.config import GenerationConfig
from pad_rt.conversation import Conversation
from pad_rt.generator import Generator
from pad_rt.preference import Preference, normalize_preferences, parse_weight
from pad_runtime.command import read_line, show_error
from pad_runtime.errors import OptionError, PadError

_HELP = """\
/preference TEXT  guide the next replies by TEXT; without TEXT, by no words
/weight NAME=W    set the weight of a feature of this bundle; without NAME=W, remove all
/beta X           strength of the preference; 0 is the base alone
/undo N           take back the last N turns; without N, the last one
/reset            forget the messages so far, keep the guidance
/fork             go on in a copy of this chat, which stays as it is
/chat N           go back to chat N; without N, list the chats
/save FILE        write this chat to FILE
/load FILE        go on with a chat that was saved
/help             show this list
/quit             leave, as Ctrl-D does; Ctrl-C stops a reply
//TEXT            send /TEXT, a message that begins with a slash"""


class Chat:
    """Conversations in a terminal, one of which goes on.

    Replies are printed on stdout, each with a line feed, and everything else on stderr, so that a script can pipe
    messages in and read replies.

    Args:
        generator: makes the replies.
        config: options of every reply.
        preference: the preference at the beginning.
        system: the system message; None for a chat without one.

    Raises:
        PromptError, PreferenceError: as `Conversation`.
    """

    def __init__(
        self,
        generator: Generator,
        config: GenerationConfig,
        preference: Preference | None,
        *,
        system: str | None = None,
    ) -> None:
        self._generator = generator
        self._chats = [generator.conversation(system=system, preference=preference, config=config)]
        self._number = 0
        self._commands = {
            "/preference": self._set_preference,
            "/weight": self._set_weight,
            "/beta": self._set_beta,
            "/undo": self._undo,
            "/reset": self._reset,
            "/fork": self._fork,
            "/chat": self._switch,
            "/save": self._save,
            "/load": self._load,
            "/help": self._help,
        }

    @property
    def _chat(self) -> Conversation:
        return self._chats[self._number]

    def run(self) -> None:
        """Take lines until stdin ends (Ctrl-D) or /quit. An error is printed, and the chat goes on."""
        interactive = sys.stdin is not None and sys.stdin.isatty()
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() its line editing and history
            _note(f"{self._generator.manifest.base}, {_guidance(self._chat)}. /help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                line = self._read(interactive)
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

    def _read(self, interactive: bool) -> str:
        """The next line that was typed or piped in."""
        number = self._number + 1 if len(self._chats) > 1 else ""
        line = input(f"{number}> ") if interactive else read_line()
        if not line and not interactive:
            raise EOFError
        return line.strip()

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
        """Stream a reply; after Ctrl-C the text so far is the reply."""
        forgotten = self._chat.forgotten
        stream = self._chat.stream(line)
        forgotten = self._chat.forgotten - forgotten
        if forgotten:
            what = (
                f"{forgotten} oldest turns no longer fit and are"
                if forgotten > 1
                else "oldest turn no longer fits and is"
            )
            _note(f"the {what} forgotten")
        shown = False
        try:
            for piece in stream:
                print(piece, end="", flush=True)
                shown = True
        except KeyboardInterrupt:
            stream.close()
            if not shown:
                _note("")
                return
        print(flush=True)
        if stream.result and stream.result.finish_reason == "length":
            _note(stream.result.describe_cut(self._chat.config.max_new_tokens))

    # -- guidance -----------------------------------------------------------------------------------------------------

    def _set_preference(self, text: str) -> None:
        _, weights = _wish(self._chat)
        self._guide(text or None, weights)

    def _set_weight(self, argument: str) -> None:
        text, weights = _wish(self._chat)
        self._guide(text, {**weights, **dict([parse_weight(argument)])} if argument else {})

    def _guide(self, text: str | None, weights: Mapping[str, float]) -> None:
        self._chat.preference = Preference(text, weights) if text or weights else None
        _note(_guidance(self._chat))

    def _set_beta(self, argument: str) -> None:
        try:
            beta = float(argument)
        except ValueError:
            raise OptionError(f"/beta {argument}".strip(), expected="a number", hint="for example /beta 1.5") from None
        self._chat.config = replace(self._chat.config, beta=beta)
        _note(_guidance(self._chat))

    # -- chats --------------------------------------------------------------------------------------------------------

    def _undo(self, argument: str) -> None:
        self._chat.rewind(_read_number(argument or "1", "/undo", self._chat.num_turns))
        _note(_describe(self._chat))

    def _reset(self, argument: str) -> None:
        del argument
        self._chat.rewind(self._chat.num_turns)
        _note("the chat begins anew")

    def _fork(self, argument: str) -> None:
        del argument
        self._go_on(self._chat.fork())

    def _load(self, argument: str) -> None:
        self._go_on(self._generator.load_conversation(_read_path(argument, "/load")))

    def _go_on(self, chat: Conversation) -> None:
        """Go on with another conversation, beside those that are there; one that has not begun gives its place."""
        if self._chat.num_turns:
            self._chats.append(chat)
            self._number = len(self._chats) - 1
        else:
            self._chats[self._number] = chat
        self._show(self._number)

    def _save(self, argument: str) -> None:
        path = _read_path(argument, "/save")
        self._chat.save(path)
        _note(f"saved as {path}")

    def _switch(self, argument: str) -> None:
        if argument:
            self._number = _read_number(argument, "/chat", len(self._chats)) - 1
            self._show(self._number)
        else:
            for number in range(len(self._chats)):
                self._show(number)

    def _show(self, number: int) -> None:
        mark = "*" if number == self._number else " "
        _note(f"{mark} chat {number + 1}: {_describe(self._chats[number])}")

    def _help(self, argument: str) -> None:
        del argument
        _note(_HELP)


def _describe(chat: Conversation) -> str:
    """A conversation in a line."""
    turns = f"{chat.num_turns} turn{'s' * (chat.num_turns != 1)}"
    if chat.num_turns:
        last = textwrap.shorten(chat.messages[-2]["content"], 40, placeholder="...")
        turns += f', the last "{last}"'
    return f"{turns}; {_guidance(chat)}"


def _guidance(chat: Conversation) -> str:
    """The guidance of the next reply, as a line for the user."""
    parts = []
    for wish, scale in normalize_preferences(chat.preference):
        words = [f'preference "{wish.text}"'] if wish.text else []
        words += [f"{name} {weight:g}" for name, weight in wish.weights.items()]
        parts.append(", ".join(words) + (f" (times {scale:g})" if scale != 1.0 else ""))
    return f"{', '.join(parts) or 'no preference'}, beta {chat.config.beta:g}"


def _wish(chat: Conversation) -> tuple[str | None, Mapping[str, float]]:
    """Words and weights of a chat's preference; neither, if there are several preferences, as only apps make them."""
    pairs = normalize_preferences(chat.preference)
    return (pairs[0][0].text, pairs[0][0].weights) if len(pairs) == 1 else (None, {})


def _read_number(argument: str, command: str, most: int) -> int:
    if not argument.isdecimal() or not 1 <= int(argument) <= most:
        raise OptionError(
            f"{command} {argument}", expected=f"a number from 1 to {most}" if most else "a chat that has turns"
        )
    return int(argument)


def _read_path(argument: str, command: str) -> Path:
    if not argument:
        raise OptionError(f"{command} without a file", expected=f"{command} FILE")
    return Path(argument).expanduser()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

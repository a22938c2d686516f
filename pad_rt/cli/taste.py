"""`pad taste`: learn a person's taste from a few choices, and keep it in a file."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pad_rt.cli.options import add_bundle, add_machine, open_bundle
from pad_rt.generator import Generator
from pad_rt.taste.chat_log import ChatLog
from pad_rt.taste.interview import Interview
from pad_rt.taste.question import Answer, Question
from pad_rt.taste.reply_pool import usual_prompts
from pad_rt.taste.taste import Estimate, Taste
from pad_runtime.command import read_line
from pad_runtime.errors import OptionError, PadError

_NUM_QUESTIONS = 8
_BAR = 21  # characters from a weight of -1 to one of 1
_CHOICES: dict[str, Answer | None] = {"a": "a", "b": "b", "s": None, "": None}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    taste = commands.add_parser(
        "taste", help="learn from a few choices how you like replies, and keep it in a file", allow_abbrev=False
    )
    taste.set_defaults(run=run)
    add_bundle(taste)
    taste.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="what is learned; if it is there, it goes on"
    )
    taste.add_argument("--questions", metavar="N", type=int, default=_NUM_QUESTIONS, help="most questions (default 8)")
    taste.add_argument("--prompts", metavar="FILE", type=Path, help="what the replies reply to, one a line")
    taste.add_argument(
        "--from",
        dest="logs",
        metavar="LOG",
        type=Path,
        nargs="+",
        help="learn from chats that were rated, edited or regenerated (JSON lines), and ask nothing",
    )
    taste.add_argument("--show", action="store_true", help="show what is believed, and ask nothing")
    add_machine(taste)


def run(options: argparse.Namespace) -> None:
    """Learn, show, and save after every answer."""
    if options.questions < 1:
        raise OptionError(f"--questions {options.questions}", expected="1 or more")
    if options.output.is_dir() or not options.output.parent.is_dir():  # said before a question is answered in vain
        raise OptionError(f"-o {options.output}", expected="the path of a file, in a folder that exists")
    prompts = _read_prompts(options.prompts)
    logs = [(path, _read_log(path)) for path in options.logs or ()]
    with Generator(open_bundle(options)) as generator:
        taste = Taste.load(options.output, generator) if options.output.exists() else Taste(generator)
        if options.show:
            print(beliefs(taste))
            return
        if logs:
            for path, log in logs:
                _learn(taste, path, log)
        else:
            _Dialogue(taste, generator, prompts, options.questions, options.output).run()
        if not taste.num_answers:
            print("\nNothing was learned, so nothing is saved.")
            return
        taste.save(options.output)
        print(f"\n{beliefs(taste)}\n")
        print(f"Saved in {options.output}, without a word of what you read. Try it:")
        print(f'  pad generate {options.bundle} "How was your day?" --taste {options.output}')


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return usual_prompts()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"--prompts {path} cannot be read: {error}", expected="a file in UTF-8") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise OptionError(f"--prompts {path} is empty", expected="a prompt a line")
    return prompts


# -- from logs --------------------------------------------------------------------------------------------------------


def _read_log(path: Path) -> ChatLog:
    try:
        with path.open(encoding="utf-8") as lines:
            return ChatLog.read(lines)
    except (OSError, ValueError) as error:
        raise OptionError(f"--from {path} cannot be read: {error}", expected="JSON lines in UTF-8") from None


def _learn(taste: Taste, path: Path, log: ChatLog) -> None:
    """Learn from a log, and tell what of it could be used."""
    learned = 0
    for choice in log.choices:
        try:
            told = choice.teach(taste)
        except PadError as error:
            told = False
            log.skipped[f"refused: {error.given}"] += 1
        else:
            if not told:
                log.skipped["a rated reply that is the base's own"] += 1
        learned += told
    kinds = ", ".join(f"{count} {kind}" for kind, count in log.kinds.items()) or "none"
    print(f"{path}: learned from {learned} of {len(log.choices)} choices ({kinds})")
    for reason, count in log.skipped.most_common():
        line = f", first in line {log.first[reason]}" if reason in log.first else ""
        print(f"  {count} skipped: {reason}{line}")


# -- by questions -----------------------------------------------------------------------------------------------------


class _Dialogue:
    """Asks for choices, each the one that tells most; the next replies are written while the person reads."""

    def __init__(self, taste: Taste, generator: Generator, prompts: Sequence[str], number: int, output: Path) -> None:
        self._taste, self._generator = taste, generator
        self._prompts, self._number, self._output = prompts, number, output

    def run(self) -> None:
        print(f"Which reply do you like better? Up to {self._number} questions: a, b, s to skip, q to stop.")
        with closing(Interview(self._prompts)) as interview:
            for turn in range(self._number):
                question = interview.ask(self._generator, self._taste, turn)
                if question is None:
                    print("\nFurther answers would tell little.")
                    return
                print(f"\n{_shown(question, turn + 1)}\n")
                choice = self._read()
                if choice == "q":
                    return
                if self._taste.answer(question, _CHOICES[choice]):
                    self._taste.save(self._output)
                    print(beliefs(self._taste))

    def _read(self) -> str:
        """a, b, s or q; the end of the input is q."""
        while True:
            try:
                interactive = sys.stdin is not None and sys.stdin.isatty()
                choice = (input("a, b, s or q? ") if interactive else read_line() or "q").strip().lower()
            except EOFError:
                return "q"
            if choice in (*_CHOICES, "q"):
                return choice
            print(f"{choice!r} is none of a, b, s and q.", file=sys.stderr)


def _shown(question: Question, number: int) -> str:
    """The replies one below the other."""
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    lines = [f"{number}. {question.prompt}"]
    for name, text, cut in zip("ab", (question.a, question.b), question.cut, strict=True):
        shown = text.strip() + (" ..." if cut else "")
        paragraphs = [textwrap.fill(part, width - 4) for part in shown.splitlines() if part.strip()]
        lines += ["", f"{name})  " + textwrap.indent("\n".join(paragraphs), "    ").strip()]
    return "\n".join(lines)


def beliefs(taste: Taste) -> str:
    """What is believed of each feature weight, as bars from -1 to 1."""
    width = max(map(len, taste.features))
    rows = [
        f"  {name.ljust(width)}  -1 {_bar(own)} 1   {own.mean:+.2f} ({own.low:+.2f} to {own.high:+.2f})"
        for name, own in taste.uncertainty().items()
    ]
    answers = "1 answer" if taste.num_answers == 1 else f"{taste.num_answers} answers"
    return "\n".join([f"After {answers}, your weights (and where they are with 90 %):", *rows])


def _bar(estimate: Estimate) -> str:
    def place(weight: float) -> int:
        return round((weight + 1) / 2 * (_BAR - 1))

    marks = [" "] * _BAR
    marks[place(0)] = "."
    for at in range(place(estimate.low), place(estimate.high) + 1):
        marks[at] = "-"
    marks[place(estimate.mean)] = "o"
    return "".join(marks)

"""What all commands share: their options, what they tell on stderr, and how they end.

Errors, a package that is missing, Ctrl-C, a closed pipe and a full disk look alike in a terminal, whatever the command.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, TextIO, TypeAlias, TypeVar

from pad_runtime.errors import PadError, PromptError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance, ReadableBuffer

    Options = TypeVar("Options", bound=DataclassInstance)

Report: TypeAlias = Callable[[str], object]  # is told of long work, a line at a time

EXIT_ERROR = 2  # argparse's own code for a wrong option
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
EXIT_TERMINATED = 143  # 128 + SIGTERM
MAX_STDIN = 2**24  # characters, more than any model's context


def run_command(name: str, command: Callable[[], None], *, farewell: Callable[[], str] = str) -> int:
    """Run a command and give its exit code.

    A `PadError` gives one line on stderr, and so does a stdout that cannot be written. Any other exception is a bug and
    keeps its traceback.

    Args:
        name: the command as the user typed it, for the error line.
        command: parses its options, does the work and writes to stdout.
        farewell: a line for stderr once the command was interrupted, or "".
    """
    with _standard_streams():
        try:
            if sys.stdout is None:
                raise _OutputLostError(errno.EBADF)
            try:
                return _call(name, command, farewell)
            finally:
                sys.stdout.flush()
        except _OutputLostError as lost:
            if lost.number == errno.EPIPE:
                return EXIT_BROKEN_PIPE
            error = PadError(
                f"stdout cannot be written: {os.strerror(lost.number)}",
                expected="a terminal, file or pipe that takes what is printed",
                hint="send what is not wanted to /dev/null",
            )
            print(f"{name}: error: {error}", file=sys.stderr)
            return EXIT_ERROR


def _call(name: str, command: Callable[[], None], farewell: Callable[[], str]) -> int:
    try:
        command()
        return 0
    except PadError as error:
        show_error(name, error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        pass  # leaving this block frees the frames, and a progress bar in one of them ends its line
    line = farewell()
    print("\n" + line if line else "", file=sys.stderr)  # the shell's prompt gets a line of its own
    return EXIT_INTERRUPTED


def run_interruptible(name: str, command: Callable[[], None], *, farewell: Callable[[], str] = str) -> int:
    """`run_command` for work that cleans up after itself: SIGTERM interrupts it as Ctrl-C does."""
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def work() -> None:
        try:
            command()
        except Exception:
            if received:  # extension modules turn an interrupt into errors of their own
                raise KeyboardInterrupt from None
            raise

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = run_command(name, work, farewell=farewell)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return EXIT_TERMINATED if signal.SIGTERM in received and code == EXIT_INTERRUPTED else code


def with_extra(extra: str, packages: Collection[str], command: Callable[[], None]) -> None:
    """Run what needs the packages that pad-rt[extra] adds.

    Raises:
        PadError: one of them is not installed.
    """
    try:
        command()
    except ModuleNotFoundError as error:
        if error.name not in packages:
            raise
        raise PadError(f"{error.name} is not installed", hint=f"pip install 'pad-rt[{extra}]'") from None


def take_options(kind: type[Options], arguments: argparse.Namespace) -> Options:
    """The dataclass whose fields are the arguments of the same names; a field without one keeps its default."""
    given = vars(arguments)
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})


def report_on_stderr(line: str) -> None:
    """The report of a command."""
    print(line, file=sys.stderr, flush=True)


def silent(line: str) -> None:
    """The report of a quiet command, or of a call that asks for none: nothing is shown, no bar either."""
    del line


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Let a command be quiet; its arguments' `report` is what to tell of its work."""
    parser.add_argument(
        "--quiet",
        dest="report",
        action="store_const",
        const=silent,
        default=report_on_stderr,
        help="print nothing on stderr but errors",
    )


def show_error(name: str, error: PadError) -> None:
    """Print an error as the one line that all commands use."""
    sys.stdout.flush()
    print(f"{name}: error: {error}", file=sys.stderr)


def read_stdin(what: str = "prompt") -> str:
    """All of stdin, which is to be the prompt, or what else a command asks for.

    Raises:
        PromptError: it is closed, cannot be read, or does not end within `MAX_STDIN` characters.
    """
    return _read(lambda stream: stream.read(MAX_STDIN + 1), what)


def read_line() -> str:
    """The next line of stdin with its line feed, or "" at the end. Errors as `read_stdin`."""
    return _read(lambda stream: stream.readline(MAX_STDIN + 1), "prompt")


def _read(read: Callable[[TextIO], str], what: str) -> str:
    expected = f"the {what} on stdin"
    if sys.stdin is None:
        raise PromptError("stdin is closed", expected=expected)
    try:
        text = read(sys.stdin)
    except OSError as error:
        raise PromptError(f"stdin cannot be read: {error.strerror or error}", expected=expected) from None
    if len(text) > MAX_STDIN:
        raise PromptError(f"more than {MAX_STDIN:,} characters on stdin", expected=f"a {what}", hint="shorten it")
    return text


class _OutputLostError(Exception):
    """Stdout cannot be written. No `PadError`, because no part of a command may catch it and go on."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class _Output(io.FileIO):
    """Standard output or error, as bytes. After a failed write all later ones are dropped, also at exit.

    Args:
        descriptor: 1 or 2.
        needed: whether a write that fails ends the command.
    """

    def __init__(self, descriptor: int, *, needed: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._needed, self._is_lost = needed, False

    def write(self, data: ReadableBuffer) -> int | None:  # type: ignore[override]
        """Write the bytes, or drop them after an earlier failure."""
        if not self._is_lost:
            try:
                return super().write(data)
            except OSError as error:
                self._is_lost = True
                if self._needed:
                    raise _OutputLostError(error.errno or errno.EIO) from None
        return memoryview(data).nbytes


@contextmanager
def _standard_streams() -> Iterator[None]:
    """While a command runs, its standard streams take any text, and a failure of stdout is told from one of a file.

    Characters that a terminal cannot show become '?', and stdin's bytes that are no text reach our own checks. The
    descriptor of a closed stream is opened on the null device, so that no file of ours gets its number.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout = _guard(sys.stdout, sys.__stdout__, needed=True)
    sys.stderr = _guard(sys.stderr, sys.__stderr__, needed=False) or io.StringIO()  # closed: print would take stdout
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _guard(stream: TextIO, own: TextIO | None, *, needed: bool) -> TextIO:
    """The process's own stream over an `_Output`; any other stream, such as a test's, unchanged."""
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):  # a Windows console
        return stream
    stream.flush()
    output = _Output(stream.fileno(), needed=needed)
    return io.TextIOWrapper(
        output if stream.write_through else io.BufferedWriter(output),
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )

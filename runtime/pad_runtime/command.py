"""How a command ends: what its errors, Ctrl-C and a closed pipe look like in a terminal."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable

from pad_runtime.errors import PadError

EXIT_ERROR = 2  # argparse's own code for a wrong option
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
EXIT_TERMINATED = 143  # 128 + SIGTERM


def run_command(name: str, command: Callable[[], None]) -> int:
    """Run a command and give its exit code.

    A `PadError` is one line on stderr; any other exception is a bug and keeps its traceback.

    Args:
        name: what the user typed, put in front of the error.
        command: does the work and writes to stdout.
    """
    _accept_any_text()
    try:
        command()
        sys.stdout.flush()
    except PadError as error:
        show_error(name, error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the shell's prompt gets a line of its own
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return 0


def run_interruptible(name: str, command: Callable[[], None]) -> int:
    """`run_command` for work that cleans up after itself: a polite kill (SIGTERM) unwinds it as Ctrl-C does."""
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
        code = run_command(name, work)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return EXIT_TERMINATED if signal.SIGTERM in received and code == EXIT_INTERRUPTED else code


def show_error(name: str, error: PadError) -> None:
    """Print an error as the one line that all commands use."""
    sys.stdout.flush()
    print(f"{name}: error: {error}", file=sys.stderr)


def _accept_any_text() -> None:
    """Let no character end a command: a narrow terminal shows '?', and bytes that are no text reach our own checks."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)

"""What both commands of pad-train do with their arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pad_export.output.disk import check_new
from pad_runtime.command import add_quiet
from pad_runtime.devices.threads import check_threads
from pad_runtime.errors import OptionError


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of both."""
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's own)")
    add_quiet(parser)


def prepare_output(output: Path) -> None:
    """Refuse an output that is there already, and make the folder that it is to be in.

    Raises:
        OptionError: it is there, or the folder cannot be made.
    """
    check_new(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"-o {output} cannot be written: {error.strerror}", hint="choose another folder") from None


def set_threads(threads: int | None) -> None:
    """Let torch compute with so many threads; None leaves it its own.

    Raises:
        OptionError: more than the machine can run.
    """
    if threads is not None:
        check_threads(threads, name="--threads")
        import torch

        torch.set_num_threads(threads)


def check_described(unknown: Sequence[str], described: Iterable[str], features: Path, what: str) -> None:
    """Refuse features that a file of features does not describe.

    Raises:
        OptionError: names the first; `what` speaks of it.
    """
    if unknown:
        raise OptionError(
            f"{what} of the feature {unknown[0]}",
            expected=f"one of {', '.join(described)}, those of {features}",
        )


def number(lowest: float, highest: float = math.inf) -> Callable[[str], float]:
    """A finite number of a range, both ends included."""

    def parse(argument: str) -> float:
        value = float(argument)
        if not lowest <= value <= highest or math.isinf(value):
            raise ValueError
        return value

    parse.__name__ = f"number of at least {lowest:g}" + ("" if math.isinf(highest) else f" and at most {highest:g}")
    return parse


def whole(name: str, lowest: int, highest: float = math.inf) -> Callable[[str], int]:
    """A whole number of a range, both ends included; errors call it by this name."""

    def parse(argument: str) -> int:
        value = int(argument)
        if not lowest <= value <= highest:
            raise ValueError
        return value

    parse.__name__ = name
    return parse


positive = whole("positive integer", 1)
seed = whole("seed from 0 to 2**32 - 1", 0, 2**32 - 1)  # what NumPy takes

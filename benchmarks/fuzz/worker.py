"""A process that tries cases one after the other, as it is told on stdin, and answers each with a line of JSON.

An exception that is no `PadError`, a case that takes too long and one that takes much memory are what is looked for;
the process that asks ends this one where not even an alarm does.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.process import answers
from benchmarks.fuzz.disk import make_disk_targets
from benchmarks.fuzz.inputs import Inputs
from benchmarks.fuzz.targets import Target, Tokens, make_targets
from pad_runtime.errors import PadError

LIMIT = 20  # seconds of one case
_GROWTH = 2**30  # bytes that one case may add to the memory of the process
_ROOM = 8 * 2**30  # bytes of addresses beyond those of the control; what asks for more gets a MemoryError


class TookTooLong(BaseException):
    """Raised by the alarm; no handler of ordinary errors catches it."""


def main() -> None:
    """Read cases, answer them."""
    answer = answers()
    inputs, kind = Inputs(Path(sys.argv[1])), sys.argv[2]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _ring)
    targets = {target.name: target for target in (make_disk_targets if kind == "disk" else make_targets)(inputs)}
    known: dict[str, Tokens] = {}
    answer([[target.name, target.strict, target.num_cases] for target in targets.values()])
    for line in sys.stdin:
        name, seed, index = json.loads(line)
        answer(_try(targets[name], seed, index, known))


def _try(target: Target, seed: int, index: int, known: dict[str, Tokens]) -> dict[str, Any]:
    """One case; the control, whose index is -1, says what the tokens of the unaltered input are."""
    rng = random.Random(f"{seed} {target.name} {index}") if index >= 0 else None
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = "?"
    try:
        copy = target.copy(scratch)
        case = target.alter(copy, rng, index)
        signal.alarm(LIMIT)
        tokens = target.use(copy)
        signal.alarm(0)
        if rng is None:
            known[target.name] = tokens
            _limit_addresses()
        outcome, detail = ("same", "") if tokens == known[target.name] else ("other", f"{tokens}"[:200])
    except PadError as error:
        outcome, detail = "refused", str(error)
        if len(detail.splitlines()) != 1 or len(detail) > 2000:
            outcome, detail = "raw", f"not a line: {detail[:200]!r}"
    except TookTooLong:
        outcome, detail = "hang", f"more than {LIMIT} s at {_where(sys.exc_info()[2])}"
    except Exception as error:
        outcome, detail = "raw", f"{type(error).__name__}: {error} at {_where(error.__traceback__)}"[:400]
    finally:
        signal.alarm(0)
        shutil.rmtree(scratch, ignore_errors=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > _GROWTH and index >= 0:
        outcome, detail = "hang", f"memory grew by {grown / 2**30:.1f} GiB; {detail}"
    return {"outcome": outcome, "case": case[:200], "detail": detail}


def _limit_addresses() -> None:
    status = Path("/proc/self/statm").read_text(encoding="ascii")
    now = int(status.split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _ROOM, resource.RLIM_INFINITY))


def _ring(*_: object) -> None:
    raise TookTooLong


def _where(trace: Any) -> str:
    """The last place in our own code."""
    frames = [frame for frame in traceback.extract_tb(trace) if "/pad_" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


if __name__ == "__main__":
    main()

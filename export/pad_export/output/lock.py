"""Locks on files: the system releases them when the process that holds them ends, however it ends."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pad_runtime.errors import OptionError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock"  # of a folder that is held
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some network disks, and Windows
_TRIES, _PAUSE = 5, 0.1  # seconds; a process that looks for leftovers holds a lock for a moment


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file, made if it is not there, against every other process that asks to.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened, or the file system has no locks.
    """
    while True:
        with path.open("ab") as file:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks on this system")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(file.fileno(), path):
                yield
                return


def _is_same(file: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`, or was removed by its last holder after it was opened."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def claimed(lock: Path, output: Path) -> Iterator[None]:
    """Hold `lock`, whose folder is made if it is not there, while `output` is made.

    Where there are no locks, nothing is held, and what may be of a living process is never removed.

    Raises:
        OptionError: another process makes `output` now, or nothing can be written there.
    """
    with ExitStack() as stack:
        for left in reversed(range(_TRIES)):
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
                lock.parent.mkdir(exist_ok=True)
                stack.enter_context(held(lock))
                break
            except BlockingIOError:
                if not left:
                    raise OptionError(
                        f"{output} is being written by another process", hint="wait for it, or choose another path"
                    ) from None
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    break
                if not (left and isinstance(error, FileNotFoundError)):  # the last holder just removed the folder
                    raise OptionError(
                        f"{output} cannot be written: {error.filename or lock}: {error.strerror}",
                        hint="choose another folder",
                    ) from None
            time.sleep(_PAUSE)
        yield

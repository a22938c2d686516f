"""The output of a batch: a file that gets whole lines only, and that a later run goes on with."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pad_runtime.errors import OptionError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_BEGINNING = b'{"id": "batch_req_'  # of each line


class Results:
    """The output file, open for further lines. Any thread may add some, and no other process while it is open.

    Args:
        path: the file. If it is there, its whole lines stay; a last line that has no end goes.
        ids: of all lines of the input.

    Attributes:
        done: ids of the lines that are in the file.

    Raises:
        OptionError: the file cannot be read and written, another process writes it, or it holds something else than
            results of this input.
    """

    def __init__(self, path: Path, ids: Collection[str]) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._refused(f"cannot be written: {error.strerror}") from None
        try:
            self._claim()
            self.done, self._size = self._read_done(frozenset(ids))
            os.ftruncate(self._file, self._size)
        except OSError as error:
            os.close(self._file)
            raise self._refused(f"cannot be written: {error.strerror}") from None
        except OptionError:
            os.close(self._file)
            raise

    def _claim(self) -> None:
        """Hold the file against other runs, which would answer the same lines, until it is closed."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise self._refused("is no regular file")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(
                f"{self._path} is being written by another process", hint="wait for it, or name another file with -o"
            ) from None
        except OSError:
            pass  # some network disks have no locks

    def _read_done(self, ids: frozenset[str]) -> tuple[set[str], int]:
        """The ids of its whole lines, and the bytes of these."""
        done, size = set[str](), 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and line.startswith(_BEGINNING[: len(line)]):
                    break
                id = _id_of(line)
                if id not in ids:
                    raise self._refused(
                        f"holds no result of this input in line {number}",
                        hint="name another one with -o; if it is the result of a line that was changed, delete it",
                    )
                done.add(id)
                size += len(line)
        return done, size

    def add(self, result: dict[str, Any]) -> None:
        """Write a line, whole or not at all.

        Raises:
            OptionError: it cannot be written, such as on a full disk.
        """
        line = json.dumps(result).encode() + b"\n"  # in ASCII: to some readers, other characters end lines, too
        with self._lock:
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError as error:
                os.ftruncate(self._file, self._size)
                raise self._refused(f"cannot be written: {error.strerror}") from None
            self._size += len(line)
            self.done.add(result["id"])

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _refused(self, what: str, hint: str = "name another one with -o") -> OptionError:
        expected = "a new file, or the output of an earlier run with this input"
        return OptionError(f"{self._path} {what}", expected=expected, hint=hint)


def _id_of(line: bytes) -> str | None:
    if not line.startswith(_BEGINNING):
        return None
    try:
        return str(json.loads(line)["id"])
    except (ValueError, RecursionError):
        return None

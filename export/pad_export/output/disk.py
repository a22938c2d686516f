"""Errors of the disk while a result is written, and the rights of its files."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pad_runtime.errors import CheckpointError, OptionError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, the process's limit
_FULL_IN_RUST = re.compile(rf"\(os error ({'|'.join(map(str, _FULL))})\)")  # safetensors, tokenizers


@contextmanager
def disk_errors(output: Path, hint: str) -> Iterator[None]:
    """Turn errors of the disk while `output` is made into one line; other exceptions pass.

    Args:
        output: the path that the user asked for.
        hint: what the user can do about a full disk.

    Raises:
        CheckpointError: the disk is full, or a file could not be read or written.
    """
    try:
        yield
    except Exception as error:
        if _is_full(error):
            raise CheckpointError(f"no space left on the disk of {output}", hint=hint) from None
        if isinstance(error, OSError):
            file = f"{error.filename}: " if error.filename else ""
            raise CheckpointError(
                f"{output} cannot be made: {file}{error.strerror or error}", hint="check that disk, then repeat"
            ) from None
        raise


def _is_full(error: Exception) -> bool:
    """Whether the disk was full; libraries written in Rust or C++ say so only in the text of their errors."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return bool(_FULL_IN_RUST.search(str(error))) or (
        "inline_container.cc" in str(error) and "unexpected pos" in str(error)  # torch.save
    )


def check_new(output: Path) -> None:
    """Refuse an output path that exists.

    Raises:
        OptionError: the path exists.
    """
    if os.path.lexists(output):
        raise OptionError(f"-o {output} exists", hint="choose another path, or remove it")


def follow_umask(folder: Path) -> None:
    """Give every file below a folder the rights of a new file (safetensors creates files for the owner alone).

    A file with a second hard link is part of another bundle and keeps its rights.
    """
    probe = folder / "rights"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
            path.chmod(mode)

"""What a disk can do to a result while it is written, and the rights that its files get."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pad_runtime.errors import CheckpointError, OptionError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, the process's own limit
_FULL_IN_RUST = re.compile(rf"\(os error ({'|'.join(map(str, _FULL))})\)")  # safetensors, tokenizers


@contextmanager
def disk_errors(output: Path, hint: str) -> Iterator[None]:
    """Tell in one line what the system refused while `output` was made; other exceptions pass.

    Args:
        output: what the user asked for.
        hint: what to do once there is room again.

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
    """Whether a file could not be written to its end; libraries that are not Python say so in words of their own."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return bool(_FULL_IN_RUST.search(str(error))) or (
        "inline_container.cc" in str(error) and "unexpected pos" in str(error)  # torch.save
    )


def check_new(output: Path) -> None:
    """Refuse what is there already.

    Raises:
        OptionError: something is.
    """
    if os.path.lexists(output):
        raise OptionError(f"-o {output} exists", hint="choose another path, or remove it")


def follow_umask(folder: Path) -> None:
    """Give every file below a folder the rights of a file that is created there now: safetensors gives the owner's.

    A file that has another name elsewhere keeps its own: it is a living bundle's.
    """
    probe = folder / "rights"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
            path.chmod(mode)

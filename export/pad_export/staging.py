"""A bundle folder that appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pad_runtime import contract
from pad_runtime.errors import CheckpointError, OptionError, OutOfMemoryError


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `output` if the block succeeds, and vanishes if it does not.

    Raises:
        OptionError: `output` cannot be written, or is something that a bundle must not replace.
        CheckpointError: the disk is full.
        OutOfMemoryError: a tensor does not fit in memory.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    _check_replaceable(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise OptionError(
            f"-o {output} cannot be written: {error.filename}: {error.strerror}", hint="choose another folder"
        ) from None
    try:
        yield folder
        folder.chmod(0o755)
        if output.exists():
            _replace(output, folder)
        else:
            folder.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"no space left on the disk of {output}", hint="free some, or choose another"
            ) from None
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # as torch says it
            raise
        raise OutOfMemoryError("no memory for one of the model's tensors", hint="close other programs") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(output: Path, folder: Path) -> None:
    """Put `folder` in place of the bundle `output`, which comes back if that fails or is interrupted."""
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent)) / "bundle"
    try:
        output.rename(old)
        folder.rename(output)
    except BaseException:
        if not output.exists():
            old.rename(output)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def _check_replaceable(output: Path) -> None:
    """Refuse everything but an empty folder, and a bundle with no file that is not its own."""
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise OptionError(f"-o {output} exists and is not a folder", hint="choose another path, or remove that file")
    try:
        found = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
        own = _files_of_bundle(output)
    except OSError as error:
        raise OptionError(f"-o {output} cannot be read: {error.strerror}", hint="choose another folder") from None
    if found and not own:
        raise OptionError(f"-o {output} exists and is not a bundle", hint="choose another folder, or remove that one")
    foreign = sorted(found - own)
    if foreign:
        raise OptionError(
            f"-o {output} holds {foreign[0]}, which is no file of the bundle there",
            hint="move it away, or choose another folder",
        )


def _files_of_bundle(folder: Path) -> set[str]:
    """Names that the manifest in a folder lists, itself among them; none where there is no manifest of ours."""
    path = folder / contract.MANIFEST_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError):
        return set()
    if not isinstance(data, dict) or data.get("format") != contract.FORMAT or not isinstance(data.get("files"), dict):
        return set()
    return {contract.MANIFEST_FILE, *data["files"]}

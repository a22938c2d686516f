"""A saved taste: one small JSON file with numbers, and no text of the person's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pad_runtime.bundle.checked_json import Check, Digest, Name, parse
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.errors import BundleError, TasteError

_FORMAT, _VERSION = "pad-rt-taste", 1
_HINT = "save the taste again, or copy the file again"
_Above0 = Annotated[float, Check("above 0", lambda value: value > 0)]


@dataclass(frozen=True)
class SavedTaste:
    """What a taste is made of again.

    Attributes:
        base: name of the bundle's base, for people to read.
        features: of the PersRMs.
        persrms: what tells these PersRMs from others.
        half_life: see `Taste`.
        mean, spread: of the prior, by feature.
        answers: phi of the better reply less that of the other, for each answer the features' differences.
    """

    base: Name
    features: list[Name]
    persrms: Digest
    half_life: _Above0 | None
    mean: dict[str, float]
    spread: dict[str, _Above0]
    answers: list[list[float]]

    def write(self, path: Path) -> None:
        """Write it whole or not at all; a file that is there is replaced.

        Raises:
            TasteError: the disk is full, or does not take the file.
        """
        fields = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        try:
            if path.is_dir():
                raise IsADirectoryError("it is a folder")
            write_whole(path, (json.dumps({**fields, "checksum": _checksum(fields)}) + "\n").encode())
        except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
            reason = getattr(error, "strerror", None) or error
            raise TasteError(f"{path} cannot be written: {reason}", hint="choose another file") from None

    @classmethod
    def read(cls, path: Path) -> SavedTaste:
        """Read a file that `write` wrote.

        Raises:
            TasteError: there is none, or it is truncated, altered, or of another version.
        """
        try:
            if not path.is_file():
                raise TasteError(f"no taste at {path}", expected="a file that pad taste or Taste.save wrote")
            fields = json.loads(path.read_bytes())
        except OSError as error:
            raise TasteError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from None
        except (ValueError, RecursionError):
            raise TasteError(f"{path} is no JSON, or not all of it", hint=_HINT) from None
        if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
            raise TasteError(f"{path} is no saved taste", expected="a file that pad taste or Taste.save wrote")
        if fields.get("version") != _VERSION:
            raise TasteError(f"{path} is of version {str(fields.get('version'))[:20]}", expected=f"version {_VERSION}")
        if fields.pop("checksum", None) != _checksum(fields):
            raise TasteError(f"{path} was altered: its contents do not give its checksum", hint=_HINT)
        del fields["format"], fields["version"]
        try:
            saved: SavedTaste = parse(fields, cls, "the taste")
        except BundleError as error:
            raise TasteError(f"{path} is no taste: {error.given}", expected=error.expected, hint=_HINT) from None
        if any(len(answer) != len(saved.features) for answer in saved.answers):
            raise TasteError(f"{path} has answers of another number of features", hint=_HINT)
        return saved


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

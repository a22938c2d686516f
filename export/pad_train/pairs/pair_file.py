"""Files of preference pairs: one JSON object a line in our layout, or in those of other projects."""

from __future__ import annotations

import codecs
import itertools
import json
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pad_export.read.persrm_name import NAME
from pad_runtime.errors import DataError, OptionError
from pad_train.pairs.layouts import Layout, find_layout, sentence_polarity
from pad_train.pairs.own_layout import OWN_LAYOUT, is_ours, may_be_ours
from pad_train.pairs.pair import Pair
from pad_train.pairs.pair_report import PairReport
from pad_train.pairs.record import Record

MAX_PROBED = 100  # first rows of a file among which one must have a known layout
_MAX_LISTED = 8  # keys or names in a message
_ROWS = (
    "prompt, chosen and rejected, or the rows of HelpSteer2, RiC or other scored replies (prompt, response, numbers), "
    "PKU-SafeRLHF, hh-rlhf, UltraFeedback or OneStopEnglish"
)


@dataclass(frozen=True)
class PairSource:
    """One file or folder of pairs.

    Attributes:
        path: path of the file or folder.
        feature: the feature that chosen replies have more of, for rows that name none.
    """

    path: Path
    feature: str | None = None


def parse_source(argument: str) -> PairSource:
    """Parse PATH or NAME=PATH from the command line; an argument that exists as a path is one.

    Raises:
        OptionError: nothing is named, or nothing on one side of the "=".
    """
    name, equals, path = argument.partition("=")
    if argument.strip() and (not equals or _exists(Path(argument))):
        return PairSource(Path(argument))
    if not name.strip() or not path.strip():
        raise OptionError(f"--data {argument!r}", expected="PATH or NAME=PATH", hint="for example harmless=pairs.jsonl")
    return PairSource(Path(path), feature=name) if NAME.fullmatch(name) else PairSource(Path(argument))


def read_pairs(sources: Sequence[PairSource]) -> tuple[list[Pair], list[PairReport]]:
    """All pairs, source by source and in the order of their rows, and a report of each source.

    A source is a JSON Lines file in our layout or in one of `pad_train.pairs.layouts`, recognised by its keys, or a
    folder with pos.txt and neg.txt. Rows that cannot be used are skipped and reported.

    Raises:
        DataError: a source cannot be read, has an unknown layout, names its own features although it was given as
            NAME=PATH, or gives no pair.
    """
    pairs, reports = [], []
    for source in sources:
        report = PairReport(source.path)
        try:
            found = _read_source(source, report)
        except OSError as error:
            raise unreadable(source.path, error) from error
        report.num_pairs = len(found)
        if not found:
            raise DataError(
                *report.lines(), expected="at least one pair", hint="correct the rows or leave the file out"
            )
        pairs += found
        reports.append(report)
    return pairs, reports


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not let us read."""
    return DataError(f"{path} cannot be read ({error.strerror or error})", hint="check the path and its permissions")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a path, or in a folder without read permission
        return False


def _read_source(source: PairSource, report: PairReport) -> list[Pair]:
    path = source.path
    if not path.exists():
        raise DataError(f"{path} does not exist", expected="a file of pairs, or a folder with pos.txt and neg.txt")
    if path.is_dir() or path.name == "pos.txt":
        folder = path if path.is_dir() else path.parent
        if not ((folder / "pos.txt").is_file() and (folder / "neg.txt").is_file()):
            names = sorted(entry.name for entry in folder.iterdir())
            raise DataError(
                f"the folder {folder} holds {_listed(names)}", expected="pos.txt and neg.txt, or give a file"
            )
        return list(sentence_polarity(_polarity_records(folder, report), source.feature, report.skip))
    rows = json_records(path, report)
    head: list[tuple[int, Record]] = []
    layout = None
    for line, row in itertools.islice(rows, MAX_PROBED):
        head.append((line, row))
        layout = _find_layout(row)
        if layout is not None:
            break
    if layout is None:
        raise _unknown_layout(path, head, report)
    if layout.has_features and source.feature is not None:
        raise DataError(
            f"{source.feature}={path}, but the rows of {layout.name} name their own features",
            expected=f"--data {path}",
        )
    return list(layout.read(itertools.chain(head, rows), source.feature, report.skip))


def json_records(path: Path, report: PairReport) -> Iterator[tuple[int, Record]]:
    """The JSON objects of a file with their line numbers; other lines are counted in the report."""
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            data = data.removeprefix(codecs.BOM_UTF8) if line == 1 else data  # noqa: PLW2901
            if not data.strip():
                continue
            report.num_records += 1
            try:
                row = json.loads(data.decode("utf-8"))
            except UnicodeDecodeError:
                report.skip(line, "bytes that are not UTF-8")
            except (ValueError, RecursionError):
                report.skip(line, "text that is not JSON")
            else:
                if isinstance(row, dict):
                    yield line, row
                else:
                    report.skip(line, "JSON that is not an object")


def _polarity_records(folder: Path, report: PairReport) -> Iterator[tuple[int, Record]]:
    with (folder / "pos.txt").open("rb") as positive, (folder / "neg.txt").open("rb") as negative:
        for line, sides in enumerate(itertools.zip_longest(positive, negative, fillvalue=b""), start=1):
            if not any(side.strip() for side in sides):
                continue
            report.num_records += 1
            try:
                chosen, rejected = (side.decode("utf-8").strip() for side in sides)
            except UnicodeDecodeError:
                report.skip(line, "bytes that are not UTF-8")
                continue
            yield line, {"positive": chosen, "negative": rejected}


def _find_layout(row: Record) -> Layout | None:
    """Our layout if a row has a key of it alone, or the three needed keys and no key of another project's layout."""
    if is_ours(row):
        return OWN_LAYOUT
    return find_layout(row) or (OWN_LAYOUT if may_be_ours(row) else None)


def _unknown_layout(path: Path, head: Sequence[tuple[int, Record]], report: PairReport) -> DataError:
    if head:
        line, row = head[0]
        return DataError(f"{path}, line {line}, has the keys {_listed(list(row))}", expected=_ROWS)
    if not report.num_records:
        return DataError(f"{path} is empty", expected=f"one JSON object a line with {_ROWS}")
    return DataError(*report.lines(), expected=f"one JSON object a line (JSON Lines) with {_ROWS}")


def _listed(names: Sequence[str]) -> str:
    listed = [reprlib.repr(name) for name in names[:_MAX_LISTED]]
    if len(names) > _MAX_LISTED:
        listed.append(f"{len(names) - _MAX_LISTED:,} more")
    return ", ".join(listed) or "nothing"

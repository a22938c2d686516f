"""Files of preference pairs: one JSON object a line in our layout, or in those of other projects."""

from __future__ import annotations

import codecs
import itertools
import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pad_runtime.errors import DataError, OptionError
from pad_train.pairs.layouts import (
    Layout,
    Row,
    RowProblem,
    check_feature,
    checked,
    find_layout,
    read_number,
    read_prompt,
    read_reply,
    row_by_row,
    sentence_polarity,
)
from pad_train.pairs.pair import NAME, Pair

_NEEDED = {"prompt", "chosen", "rejected"}
_OURS = {"preference", "weights", "scores", "chosen_finished", "rejected_finished"}

MAX_HEAD = 100  # first rows of a file among which one must have a known layout
_MAX_LISTED = 8  # keys, names or reasons in a message
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


@dataclass
class PairReport:
    """Counts of a source's rows and pairs.

    Attributes:
        path: the source.
        num_rows: rows read, blank lines aside.
        num_pairs: pairs that the rows gave.
        skipped: by reason, the number of rows and the line number of the first, from 1.
    """

    path: Path
    num_rows: int = 0
    num_pairs: int = 0
    skipped: dict[str, tuple[int, int]] = field(default_factory=dict)

    def skip(self, line: int, reason: str) -> None:
        """Count a row that gives no pair."""
        count, first = self.skipped.get(reason, (0, line))
        self.skipped[reason] = (count + 1, min(first, line))

    def lines(self) -> list[str]:
        """The report as a line of text."""
        return [f"{self.path}: {counted(self.num_pairs, 'pair')} of {counted(self.num_rows, 'row')}{self.told_skips()}"]

    def told_skips(self) -> str:
        """The skipped rows and reasons, as the end of a line; "" if none was skipped."""
        reasons = [
            f"{count:,} with {reason} (first at line {first:,})" for reason, (count, first) in self.skipped.items()
        ]
        if len(reasons) > _MAX_LISTED:
            others = sum(count for count, _ in list(self.skipped.values())[_MAX_LISTED:])
            reasons[_MAX_LISTED:] = [f"{others:,} for other reasons"]
        return f"; skipped {', '.join(reasons)}" if reasons else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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


def pair_to_row(pair: Pair) -> dict[str, Any]:
    """The row of our layout that is read back as this pair; a margin m becomes the scores [m, 0.0]."""
    messages = [dict(message) for message in pair.messages]
    plain = len(messages) == 1 and messages[0]["role"] == "user"
    row: dict[str, Any] = {
        "prompt": messages[0]["content"] if plain else messages,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
    if pair.preference is not None:
        row["preference"] = pair.preference
    if pair.weights:
        row["weights"] = dict(pair.weights)
    if pair.margins:
        row["scores"] = {feature: [margin, 0.0] for feature, margin in pair.margins.items()}
    if not pair.chosen_finished:
        row["chosen_finished"] = False
    if not pair.rejected_finished:
        row["rejected_finished"] = False
    return row


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
        return list(sentence_polarity(_polarity_rows(folder, report), source.feature, report.skip))
    rows = json_rows(path, report)
    head: list[tuple[int, Row]] = []
    layout = None
    for line, row in itertools.islice(rows, MAX_HEAD):
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


def json_rows(path: Path, report: PairReport) -> Iterator[tuple[int, Row]]:
    """The JSON objects of a file with their line numbers; other lines are counted in the report."""
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            data = data.removeprefix(codecs.BOM_UTF8) if line == 1 else data  # noqa: PLW2901
            if not data.strip():
                continue
            report.num_rows += 1
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


def _polarity_rows(folder: Path, report: PairReport) -> Iterator[tuple[int, Row]]:
    with (folder / "pos.txt").open("rb") as positive, (folder / "neg.txt").open("rb") as negative:
        for line, sides in enumerate(itertools.zip_longest(positive, negative, fillvalue=b""), start=1):
            if not any(side.strip() for side in sides):
                continue
            report.num_rows += 1
            try:
                chosen, rejected = (side.decode("utf-8").strip() for side in sides)
            except UnicodeDecodeError:
                report.skip(line, "bytes that are not UTF-8")
                continue
            yield line, {"positive": chosen, "negative": rejected}


def _find_layout(row: Row) -> Layout | None:
    """Our layout if a row has a key of it alone, or the three needed keys and no key of another project's layout."""
    if row.keys() >= _NEEDED and _OURS & row.keys():
        return _OUR_LAYOUT
    return find_layout(row) or (_OUR_LAYOUT if row.keys() >= _NEEDED else None)


def _unknown_layout(path: Path, head: Sequence[tuple[int, Row]], report: PairReport) -> DataError:
    if head:
        line, row = head[0]
        return DataError(f"{path}, line {line}, has the keys {_listed(list(row))}", expected=_ROWS)
    if not report.num_rows:
        return DataError(f"{path} is empty", expected=f"one JSON object a line with {_ROWS}")
    return DataError(*report.lines(), expected=f"one JSON object a line (JSON Lines) with {_ROWS}")


def _listed(names: Sequence[str]) -> str:
    listed = [reprlib.repr(name) for name in names[:_MAX_LISTED]]
    if len(names) > _MAX_LISTED:
        listed.append(f"{len(names) - _MAX_LISTED:,} more")
    return ", ".join(listed) or "nothing"


@row_by_row
def _read_our_row(row: Row, feature: str | None) -> Pair:
    """Our layout: {prompt, chosen, rejected} and optional keys; a null counts as a missing key.

    `feature` (of NAME=PATH) is the feature that chosen has more of, if the row names no person.
    """
    unknown = [key for key in row if key not in _NEEDED | _OURS]
    if unknown:
        raise RowProblem(f"the unknown key {reprlib.repr(unknown[0])}")
    weights, margins = read_weights(row.get("weights")), _read_scores(row.get("scores"))
    preference = row.get("preference")
    if preference is not None and not (isinstance(preference, str) and preference.strip()):
        raise RowProblem("a preference that is empty or not text")
    if preference is None and not weights:
        if margins and not any(margins.values()):
            raise RowProblem("scores that are all equal")
        if feature is not None and not margins:
            weights = {feature: 1.0}
    return checked(
        Pair(
            read_prompt(row.get("prompt")),
            read_reply(row, "chosen"),
            read_reply(row, "rejected"),
            preference=preference,
            weights=weights,
            margins=margins,
            chosen_finished=read_flag(row, "chosen_finished"),
            rejected_finished=read_flag(row, "rejected_finished"),
        )
    )


def read_weights(value: Any) -> dict[str, float]:
    """A person's weights by feature; empty if there is no value.

    Raises:
        RowProblem: not finite numbers by feature, or all of them zero.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowProblem("weights that are not finite numbers by feature")
    weights = {check_feature(feature): read_number(weight) for feature, weight in value.items()}
    if not all(math.isfinite(weight) for weight in weights.values()):
        raise RowProblem("weights that are not finite numbers by feature")
    if weights and not any(weights.values()):
        raise RowProblem("weights that are all zero")
    return weights


def _read_scores(value: Any) -> dict[str, float]:
    """Margins: the score of chosen minus that of rejected."""
    if value is None:
        return {}
    problem = RowProblem("scores that are not two finite numbers by feature")
    if not isinstance(value, Mapping):
        raise problem
    margins = {}
    for feature, scores in value.items():
        if not isinstance(scores, list) or len(scores) != 2:
            raise problem
        margins[check_feature(feature)] = read_number(scores[0]) - read_number(scores[1])
    if not all(math.isfinite(margin) for margin in margins.values()):
        raise problem
    return margins


def read_flag(row: Row, key: str) -> bool:
    """A boolean of a row, True if the key is missing.

    Raises:
        RowProblem: neither true nor false.
    """
    value = row.get(key)
    if value is None:
        return True
    if not isinstance(value, bool):
        raise RowProblem(f"{key} that is neither true nor false")
    return value


_OUR_LAYOUT = Layout("PAD-RT", _read_our_row)

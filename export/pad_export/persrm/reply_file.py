"""Files of replies that are to be ranked: one reply a row, or pairs whose own verdict does not count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pad_export.persrm.layouts import Row, RowProblem, checked, read_prompt, read_reply
from pad_export.persrm.pair import Pair
from pad_export.persrm.pair_choice import Answers, MadeReply
from pad_export.persrm.pair_file import (
    PairReport,
    json_rows,
    parse_source,
    read_flag,
    read_pairs,
    read_weights,
)
from pad_runtime.errors import DataError

_KEYS = {"prompt", "reply", "finished", "weights"}


def read_answers(arguments: Sequence[str]) -> tuple[list[Answers], list[str]]:
    """Replies by prompt, file by file, and a line about each file.

    A row is {prompt, reply} with, where it applies, `"finished": false` for a reply that was cut, and the `weights` of
    the person that it was made for. A file of pairs, in any layout that `read_pairs` knows, gives two replies a row,
    made for nobody.

    Raises:
        DataError: a file that cannot be read or that gives no reply.
    """
    answers: list[Answers] = []
    lines: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_file() and _holds_replies(path):
            found, told = _read_replies(path)
        else:
            pairs, reports = read_pairs([parse_source(argument)])
            found, told = [_both(pair) for pair in pairs], [line for report in reports for line in report.lines()]
        answers += found
        lines += told
    return answers, lines


def _holds_replies(path: Path) -> bool:
    _, row = next(json_rows(path, PairReport(path)), (0, {}))
    return "reply" in row and "chosen" not in row and row.keys() <= _KEYS


def _both(pair: Pair) -> Answers:
    replies = MadeReply(pair.chosen, pair.chosen_finished), MadeReply(pair.rejected, pair.rejected_finished)
    return Answers(pair.messages, replies)


def _read_replies(path: Path) -> tuple[list[Answers], list[str]]:
    report = PairReport(path)
    by_prompt: dict[str, tuple[Pair, list[MadeReply]]] = {}
    count = 0
    for line, row in json_rows(path, report):
        try:
            asked, reply = _read_row(row)
        except RowProblem as problem:
            report.skip(line, str(problem))
            continue
        by_prompt.setdefault(asked.conversation, (asked, []))[1].append(reply)
        count += 1
    if not count:
        raise DataError(*report.lines(), expected="at least one reply", hint="correct the rows or leave the file out")
    skipped = report.lines()[0].partition("; skipped ")[2]
    told = f"{path}: {count:,} replies to {len(by_prompt):,} prompts" + (f"; skipped {skipped}" if skipped else "")
    return [Answers(asked.messages, tuple(replies)) for asked, replies in by_prompt.values()], [told]


def _read_row(row: Row) -> tuple[Pair, MadeReply]:
    if unknown := [key for key in row if key not in _KEYS]:
        raise RowProblem(f"the unknown key {unknown[0]!r}")
    text = read_reply(row, "reply")
    asked = checked(Pair(read_prompt(row.get("prompt")), text, rejected=""))  # as the prompt and text of any pair
    return asked, MadeReply(text, read_flag(row, "finished"), read_weights(row.get("weights")))

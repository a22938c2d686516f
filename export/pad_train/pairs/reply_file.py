"""Files of replies to be ranked: one reply a row, or preference pairs, whose verdicts are ignored."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Sequence
from pathlib import Path

from pad_runtime.errors import DataError
from pad_train.pairs.pair import Message, Pair
from pad_train.pairs.pair_choice import Answers, MadeReply
from pad_train.pairs.pair_file import MAX_PROBED, json_records, parse_source, read_pairs, unreadable
from pad_train.pairs.pair_report import PairReport, counted
from pad_train.pairs.record import Record, RecordProblem, checked, read_flag, read_prompt, read_reply, read_weights

_KEYS = {"prompt", "reply", "finished", "weights"}


def read_answers(arguments: Sequence[str]) -> tuple[list[Answers], list[str]]:
    """Replies by prompt, over all files, and a line about each file.

    A row is {prompt, reply}, with `"finished": false` for a reply that was cut, and with the `weights` of the person
    that it was made for, if any. A file of pairs, in any layout that `read_pairs` knows, gives two usual replies a row.

    Raises:
        DataError: a file cannot be read or gives no reply.
    """
    by_prompt: dict[str, tuple[tuple[Message, ...], list[MadeReply]]] = {}
    pairs: list[Answers] = []
    lines: list[str] = []
    for source in map(parse_source, arguments):
        if source.feature is None and _holds_replies(source.path):
            lines.append(_read_replies(source.path, by_prompt))
            continue
        found, reports = read_pairs([source])
        pairs += map(_both, found)
        lines += [line for report in reports for line in report.lines()]
    return [*(Answers(messages, tuple(replies)) for messages, replies in by_prompt.values()), *pairs], lines


def _holds_replies(path: Path) -> bool:
    """Whether a file's first rows are replies; all other files are left to `read_pairs`."""
    try:
        if not path.is_file():
            return False
        head = [row for _, row in itertools.islice(json_records(path, PairReport(path)), MAX_PROBED)]
    except OSError as error:
        raise unreadable(path, error) from error
    return any("reply" in row and (row.keys() <= _KEYS or "weights" in row or "finished" in row) for row in head)


def _both(pair: Pair) -> Answers:
    replies = MadeReply(pair.chosen, pair.chosen_finished), MadeReply(pair.rejected, pair.rejected_finished)
    return Answers(pair.messages, replies)


def _read_replies(path: Path, by_prompt: dict[str, tuple[tuple[Message, ...], list[MadeReply]]]) -> str:
    """Add a file's replies to those of their prompts, and return a line with their number."""
    report, prompts, count = PairReport(path), set(), 0
    for line, row in json_records(path, report):
        try:
            asked, reply = _read_record(row)
        except RecordProblem as problem:
            report.skip(line, str(problem))
            continue
        by_prompt.setdefault(asked.conversation, (asked.messages, []))[1].append(reply)
        prompts.add(asked.conversation)
        count += 1
    told = f"{path}: {'1 reply' if count == 1 else f'{count:,} replies'} to {counted(len(prompts), 'prompt')}"
    if not count:
        raise DataError(
            told + report.told_skips(), expected="at least one reply", hint="correct the rows or leave it out"
        )
    return told + report.told_skips()


def _read_record(row: Record) -> tuple[Pair, MadeReply]:
    if unknown := [key for key in row if key not in _KEYS]:
        raise RecordProblem(f"the unknown key {reprlib.repr(unknown[0])}")
    text = read_reply(row, "reply")
    asked = checked(Pair(read_prompt(row.get("prompt")), text, rejected=""))  # checks prompt and text as for a pair
    weights = {name: weight for name, weight in read_weights(row.get("weights")).items() if weight}
    return asked, MadeReply(text, read_flag(row, "finished"), weights)

"""Replies and where they are kept: one JSON file a cell, so that a run can be interrupted and taken up again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common.records import write_record
from benchmarks.quality.methods import Cell

_MARKER = re.compile(r"^\s*(?:#{1,6}\s+|>\s+|[-*+•]\s+|\d{1,2}[.)]\s+)+")
_MARKUP = re.compile(rf"{_MARKER.pattern}|[*_`]{{1,3}}(?=\S)|(?<=\S)[*_`]{{1,3}}")
_ENDED = re.compile(r"[.!?][\"')\]]*$")
_SENTENCE = re.compile(r".*[.!?][\"')\]]*(?=\s|$)", re.DOTALL)


@dataclass(frozen=True)
class JudgedReply:
    """One reply.

    Attributes:
        prompt: what was asked.
        text: the reply as generated.
        token_ids: its ids, the end of turn left out.
        cut: it was ended by the cap and not by the model.
        perplexity: of its tokens under the base, which reads the plain prompt; None where it was not measured.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    cut: bool
    perplexity: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def plain(self) -> str:
        """The text as a reader sees it: no markup and no list markers, and every finished line is a sentence."""
        lines = [_MARKUP.sub("", line).strip() for line in self.text.strip().splitlines()]
        lines = [line for line in lines if re.search(r"\w", line)]
        ended = [line if _ENDED.search(line) else f"{line.rstrip(':;,')}." for line in lines[:-1]]
        return " ".join([*ended, *lines[-1:]])

    @property
    def sentences(self) -> str:
        """`plain` without the sentence that the cap broke off, unless there is no other."""
        whole = _SENTENCE.match(self.plain) if self.cut else None
        return whole[0] if whole else self.plain

    def first_words(self, num_words: int) -> JudgedReply:
        """The reply cut to so many words of `plain`; lines and their markers stay as they are."""
        lines, left = [], num_words
        for line in self.text.strip().splitlines():
            words = _MARKUP.sub("", line).split() if re.search(r"\w", line) else []
            if words and not left:
                break
            marker = _MARKER.match(line) if words else None
            lines.append((marker[0] if marker else "") + " ".join(words[:left]))
            left -= min(left, len(words))
        return replace(self, text="\n".join(lines), cut=self.cut or len(self.plain.split()) > num_words)


@dataclass(frozen=True)
class ReplyFile:
    """A cell's replies, to the first so many prompts.

    Attributes:
        replies: in the order of the prompts.
        seconds: what generating them took, perplexity left out.
        tokens_per_s: of the last run that added to them.
    """

    replies: tuple[JudgedReply, ...] = ()
    seconds: float = 0.0
    tokens_per_s: float = 0.0


class ReplyStore:
    """The folder of all cells.

    Args:
        folder: made when first written to.
        marks: by `Cell.persrm`, fingerprint of whatever else decides what a cell's replies are: base, PersRM, versions.
            A file written under another one does not count.
    """

    def __init__(self, folder: Path, marks: Mapping[str, str]) -> None:
        self._folder, self._marks = folder, marks

    def load(self, cell: Cell, prompts: Sequence[str]) -> ReplyFile:
        """What there is, in the order of the prompts; where all of them are answered, more may follow."""
        try:
            record = json.loads(self._path(cell).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ReplyFile()
        if record.get("settings") != self._settings(cell):
            return ReplyFile()
        kept: list[JudgedReply] = []
        for index, fields in enumerate(record["replies"]):
            if index < len(prompts) and fields["prompt"] != prompts[index]:
                break
            kept.append(JudgedReply(**{**fields, "token_ids": tuple(fields["token_ids"])}))
        return ReplyFile(tuple(kept), record["seconds"], record["tokens_per_s"])

    def save(self, cell: Cell, file: ReplyFile) -> None:
        """Replaces the cell's file in one stroke."""
        replies = [asdict(reply) for reply in file.replies]
        times = {"seconds": round(file.seconds, 2), "tokens_per_s": round(file.tokens_per_s, 2)}
        write_record(self._path(cell), {"settings": self._settings(cell), **times, "replies": replies})

    def _settings(self, cell: Cell) -> dict[str, Any]:
        return json.loads(json.dumps({**asdict(cell), "mark": self._marks[cell.persrm]}))  # type: ignore[no-any-return]

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.slug}.json"


def complete(
    store: ReplyStore,
    cell: Cell,
    prompts: Sequence[str],
    *,
    num_perplexities: int,
    generate: Callable[[Cell, Sequence[str]], ReplyFile],
    perplexity: Callable[[JudgedReply], float | None],
) -> ReplyFile | None:
    """Generate what is missing of a cell, and save it; None where nothing was.

    Args:
        num_perplexities: perplexities are measured for the replies to so many of the first prompts.
        generate: replies to prompts.
        perplexity: of a reply.
    """
    file = store.load(cell, prompts)
    have = len(file.replies)
    if have < len(prompts):
        added = generate(cell, prompts[have:])
        file = ReplyFile(file.replies + added.replies, file.seconds + added.seconds, added.tokens_per_s)
    replies = tuple(
        replace(reply, perplexity=perplexity(reply)) if index < num_perplexities and lacks_perplexity(reply) else reply
        for index, reply in enumerate(file.replies)
    )
    if have >= len(prompts) and replies == file.replies:
        return None
    file = replace(file, replies=replies)
    store.save(cell, file)
    return file


def is_complete(store: ReplyStore, cell: Cell, prompts: Sequence[str], *, num_perplexities: int) -> bool:
    """Whether a run would leave the cell as it is."""
    replies = store.load(cell, prompts).replies
    return len(replies) >= len(prompts) and not any(map(lacks_perplexity, replies[:num_perplexities]))


def lacks_perplexity(reply: JudgedReply) -> bool:
    """An empty reply has none."""
    return reply.perplexity is None and bool(reply.token_ids)

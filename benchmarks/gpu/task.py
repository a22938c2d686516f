"""What a measuring process is told, and how it answers: one JSON argument in, a JSON line on stdout for every row."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.common.process import answers
from benchmarks.common.settings import Settings
from benchmarks.gpu.rows import Group


@dataclass(frozen=True)
class GpuTask:
    """A group, how long to measure each of its rows, and a folder that may be filled."""

    group: Group
    settings: Settings
    folder: str

    def text(self) -> str:
        """As a command's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> GpuTask:
        """What `text` gave."""
        fields = json.loads(text)
        group = fields["group"]
        group |= {name: tuple(group[name]) for name in ("batches", "prompts")}
        return cls(Group(**group), Settings(**fields["settings"]), fields["folder"])


def measured(row: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row's record, or why there is none: what one row has no memory for, another may have."""
    try:
        return {"row": row, **measure()}
    except Exception as error:
        traceback.print_exc()  # in the log
        return {"row": row, "failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]}


def serve_rows(measure: Callable[[GpuTask], Iterator[dict[str, Any]]]) -> None:
    """Print the rows that the task in the command line asks for, each as soon as it is there."""
    answer = answers()
    for record in measure(GpuTask.parse(sys.argv[1])):
        answer(record)

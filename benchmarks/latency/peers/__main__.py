"""Guided decoding here and elsewhere: the same weights in PAD-RT, transformers, Optimum, ONNX Runtime GenAI, llama.cpp.

Each row is a system and PAD-RT in processes of their own, which take turns round by round, on one core where there is
one thread. Then PAD-RT's own step at several sizes. A row is kept under build/latency as soon as it is there; repeat
the command to go on. Writes benchmarks/results/latency.json and docs/plots/latency-*.png, prints the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import PLOTS, RESULTS, versions, write_record
from benchmarks.common.settings import Settings
from benchmarks.latency.bundles import code_mark
from benchmarks.latency.peers.rows import BETA, QUESTION, TOP_K, measure_row, prompt_ids
from benchmarks.latency.peers.sides import ROWS
from benchmarks.latency.plots import draw
from benchmarks.latency.shape_rows import SHAPE_ROWS, measure_shape
from benchmarks.latency.shapes import BUILD
from benchmarks.latency.table import tables
from pad_rt.bench.machine import num_cores, read_bandwidth

RECORD = RESULTS / "latency.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="ROW", default=["*"], help="names or patterns, such as 'genai-*'")
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    parser.add_argument("--rounds", type=int, default=8, help="of each side of a row")
    parser.add_argument("--new-tokens", type=int, default=32, help="of each round")
    parser.add_argument("--threads", type=int, default=1, help="1 keeps everything on one core")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record; plots go beside it where it is not ours")
    options = parser.parse_args()
    names = [name for name in (*ROWS, *SHAPE_ROWS) if any(fnmatch(name, pattern) for pattern in options.only)]
    if options.list:
        print("\n".join(names))
        return
    if not names:
        parser.error(f"no row is called {' or '.join(options.only)}; --list names them")
    settings = Settings(options.rounds, options.new_tokens, options.threads)
    for name in names:
        measure: Callable[[str, Settings], dict[str, Any]] = measure_row if name in ROWS else measure_shape
        _ensure_row(name, measure, settings, again=options.again)
    record = _record(settings)
    write_record(options.out, record)
    draw(record, PLOTS if options.out == RECORD else options.out.parent)
    print(tables(record))


def _ensure_row(
    name: str, measure: Callable[[str, Settings], dict[str, Any]], settings: Settings, *, again: bool
) -> None:
    """Measure a row, unless it is there, was not skipped, and is of this code and these settings."""
    path = _row_file(name, settings)
    kept = _read(path)
    marks = {"code": code_mark(), "settings": _mark(settings)}
    if kept and {name: kept[name] for name in marks} == marks and "skipped" not in kept and not again:
        return
    print(name, flush=True)
    row = measure(name, settings)
    if "skipped" in row:
        print(f"   skipped: {row['skipped']}", flush=True)
    write_record(path, {**marks, **row})


def _record(settings: Settings) -> dict[str, Any]:
    """Every row that is there for these settings, with the mark of the code it is of, and what it was measured on."""
    kept = {name: row for name in (*ROWS, *SHAPE_ROWS) if (row := _read(_row_file(name, settings)))}
    current = {name: row for name, row in kept.items() if row.pop("settings") == _mark(settings)}
    return {
        "what": "PAD guided decoding, batch 1, greedy; sides of a row take turns",
        "settings": {**asdict(settings), "pinned_to_one_core": settings.core is not None},
        "peers_prompt": {"question": QUESTION, "tokens": len(prompt_ids()), "top_k": TOP_K, "beta": BETA},
        "shapes_prompt": "random token ids; base and reward read the same, as for a person who is named by weights",
        "machine": describe_machine()
        | {"read_gb_s": {str(threads): read_bandwidth(threads) for threads in sorted({1, num_cores()})}},
        "versions": versions("pad-rt", "onnxruntime", "numpy", "torch", "transformers"),
        "peers": [row for name, row in current.items() if name in ROWS],
        "shapes": [row for name, row in current.items() if name in SHAPE_ROWS],
    }


def _mark(settings: Settings) -> list[Any]:
    return [settings.rounds, settings.new_tokens, QUESTION, TOP_K, BETA]


def _row_file(name: str, settings: Settings) -> Path:
    return BUILD / "rows" / f"{name}-t{settings.threads}.json"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return row


if __name__ == "__main__":
    main()

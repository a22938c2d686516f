"""The fuzzer of `make fuzz`: that it sees what it looks for, and a few cases of it."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz import changes, worker
from benchmarks.fuzz.targets import Target
from pad_runtime.errors import BundleError


@pytest.fixture(autouse=True)
def this_process_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker, "_limit_addresses", lambda: None)
    before = signal.signal(signal.SIGALRM, worker._ring)
    yield
    signal.signal(signal.SIGALRM, before)


def raising(error: Exception) -> Callable[[Path], Any]:
    def use(_: Path) -> Any:
        raise error

    return use


def endless(_: Path) -> Any:
    while True:
        pass


@pytest.mark.parametrize(
    ("use", "outcome", "is_right"),
    [
        (lambda path: [[1, 2]], "same", True),
        (raising(BundleError("one", hint="line")), "refused", True),
        (raising(BundleError("x" * 3000, hint="line")), "raw", False),
        (lambda path: [[1, 3]], "other", False),
        (raising(ZeroDivisionError("a bug")), "raw", False),
        (raising(MemoryError()), "raw", False),
        (endless, "hang", False),
    ],
    ids=["same", "refused", "no line", "other", "raw", "memory", "hang"],
)
def test_what_a_case_is_counted_as(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], Any], outcome: str, is_right: bool
) -> None:
    monkeypatch.setattr(worker, "LIMIT", 1)
    target = Target("any", True, lambda scratch: scratch, lambda copy, rng, index: "altered", use)
    answer = worker._try(target, 0, 0, {"any": [[1, 2]]})
    assert answer["outcome"] == outcome
    row = fuzz.TargetCounts("any", True)
    row.count({"outcome": "same"}, -1)
    row.count(answer, 0)
    assert (row.tried, row.counts[outcome], row.is_right) == (1, 1, is_right)
    if outcome == "other":
        allowed = fuzz.TargetCounts("any", False)
        allowed.count(answer, 0)
        assert allowed.is_right
        assert "(1)" in fuzz.table([allowed]).splitlines()[2]


def test_a_control_that_is_refused_is_a_fault() -> None:
    row = fuzz.TargetCounts("any", False)
    row.count({"outcome": "refused"}, -1)
    assert not row.is_right
    assert fuzz.table([row]).splitlines()[2].endswith("| FAULT |")


def test_every_place_of_a_document_is_edited() -> None:
    document = {"a": [1, {"b": "c"}], "d": None}
    edits = list(changes.edits(document))
    assert {edit.path for edit in edits} == {
        (), ("a",), ("a", 0), ("a", 1), ("a", 1, "b"), ("d",), ("unknown",), ("a", 1, "unknown"),
    }  # fmt: skip
    results = [json.dumps(edit.apply(document)) for edit in edits]
    assert document == {"a": [1, {"b": "c"}], "d": None}
    assert '{"a": [1, {}], "d": null}' in results
    assert '{"a": [1, {"b": 2147483648}], "d": null}' in results
    assert '{"a": [{"b": "c"}], "d": null}' in results


def test_changes_of_bytes() -> None:
    data = bytes(range(256)) * 40
    for seed in range(50):
        rng = random.Random(seed)
        other = changes.one_byte(data, rng)
        assert sum(a != b for a, b in zip(data, other, strict=True)) == 1
        beginning = changes.cut(data, rng)
        assert data.startswith(beginning)
        assert beginning != data
        other = changes.zeros(data, rng)
        assert len(other) == len(data)
        assert other != data


def test_a_few_cases_of_each_kind(tmp_path: Path) -> None:
    kinds = ["pad.json: one byte", "weights.bin: zeros", "sizes and names", "adapter_config.json: values"]
    kinds += ["GGUF: header", "full disk, new", "export killed, replaced"]
    rows = fuzz.fuzz(tmp_path, num_cases=1, seed=1, jobs=1, only=kinds)
    assert len(rows) == len(kinds) + 1  # "header bytes", too
    assert all(row.control == "same" for row in rows)
    assert all(row.tried == sum(row.counts.values()) >= 1 for row in rows)
    assert [row.faults for row in rows if row.faults] == []
    assert next(row for row in rows if row.target == "bundle, weights.bin: zeros").counts["refused"] == 1

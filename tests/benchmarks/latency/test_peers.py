"""The latency benchmark's own arithmetic and plumbing; no peer is installed and nothing is timed."""

from __future__ import annotations

import itertools
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common.kept import kept, made, stamped
from benchmarks.common.process import RowError
from benchmarks.common.settings import Settings, pinned
from benchmarks.latency.peers.loop import PeerTask, choose, decode_pair
from benchmarks.latency.peers.process import PeerProcess
from benchmarks.latency.peers.rows import first_difference
from benchmarks.latency.peers.sides import ROWS, SIDES
from benchmarks.latency.shape_rows import SHAPE_ROWS
from benchmarks.latency.shapes import SHAPES
from benchmarks.latency.table import tables

TASK = PeerTask(
    base_ids=[1, 2], reward_ids=[3], top_k=2, beta=1.0, max_new_tokens=4, threads=1, core=None, files={"here": "x"}
)


def test_the_mix_of_two_models() -> None:
    base, reward = np.array([0.0, 3.0, 2.0, 1.0]), np.array([9.0, 0.0, 0.5, 8.0])
    assert choose(base, reward, top_k=2, beta=0.0) == 1
    assert choose(base, reward, top_k=2, beta=0.4) == 1  # 3 - 1.2 against 2 - 0.6
    assert choose(base, reward, top_k=2, beta=1.0) == 2  # 0 against 0.5
    assert choose(base, reward, top_k=3, beta=1.0) == 3
    assert choose(base, reward, top_k=4, beta=1.0) == 0
    shifted = choose(base + 5, reward - 7, top_k=3, beta=1.0)
    assert shifted == 3  # logits and log probabilities choose alike


class Counter:
    """A model whose likeliest next token is one more than the last that it read."""

    def __init__(self, step: int) -> None:
        self.read: list[int] = []
        self.more = step

    def prefill(self, ids: list[int]) -> np.ndarray:
        self.read = list(ids)
        return self.logits()

    def step(self, token: int) -> np.ndarray:
        self.read.append(token)
        return self.logits()

    def logits(self) -> np.ndarray:
        near = np.arange(20.0)
        return -np.abs(near - (self.read[-1] + self.more))


def test_two_models_decode_together() -> None:
    base, reward = Counter(1), Counter(2)
    guided = list(itertools.islice(decode_pair(base, reward, TASK, guided=True), 3))
    assert base.read[:2] == [1, 2]
    assert reward.read == [3, *guided[:2]]
    assert list(itertools.islice(decode_pair(base, reward, TASK, guided=False), 3)) == [3, 4, 5]


PEER = """
import itertools
from benchmarks.latency.peers.loop import serve

class Fake:
    def __init__(self, task):
        print("noise on stdout")
        if task.files["here"] == "broken":
            raise OSError("no such model")
        self.first = task.base_ids[0]

    def decode(self, guided):
        yield from itertools.count(self.first if guided else 10)

serve(Fake, "numpy")
"""


@pytest.fixture
def peer_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "fake_peer.py").write_text(PEER)
    return "fake_peer"


def test_a_peer_answers_round_by_round(peer_module: str, tmp_path: Path) -> None:
    with PeerProcess(Path(sys.executable), peer_module, TASK, tmp_path / "log") as peer:
        assert peer.versions == {"numpy": np.__version__}
        for guided_first in (True, False):
            record = peer.round(3, guided_first=guided_first)
            assert record["tokens"] == [1, 2, 3]
            assert record["base_tokens"] == [10, 11, 12]
            assert len(record["step_ms"]) == len(record["base_step_ms"]) == 2
            assert next(iter(record)) == ("tokens" if guided_first else "base_tokens")
    assert "noise on stdout" in (tmp_path / "log").read_text()


def test_a_peer_that_fails_says_why(peer_module: str, tmp_path: Path) -> None:
    task = PeerTask(**{**vars(TASK), "files": {"here": "broken"}})
    with pytest.raises(RowError, match="fake_peer ended with code 1: OSError: no such model"):
        PeerProcess(Path(sys.executable), peer_module, task, tmp_path / "log")


def test_what_is_made_is_whole(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.mkdir(parents=True)
        raise OSError("half-way")

    target = tmp_path / "models" / "base"
    with pytest.raises(OSError, match="half-way"):
        made(target, fail)
    assert not target.exists()
    for _ in range(2):
        made(target, lambda path: path.mkdir())
    assert [path.name for path in target.parent.iterdir()] == ["base"]


def test_what_is_kept_is_kept_for_its_mark(tmp_path: Path) -> None:
    given = iter(range(9))
    assert [kept(tmp_path / "a.json", mark, lambda: next(given)) for mark in (["x"], ["x"], ["y"])] == [0, 0, 1]
    folder = tmp_path / "folder"
    tried: list[str] = []

    def make(name: str) -> None:
        tried.append(name)
        folder.mkdir(exist_ok=True)
        if name == "fails":
            raise OSError(name)

    for name in ("one", "one", "two"):
        assert stamped(folder, name, lambda name=name: make(name)) == folder
    with pytest.raises(OSError, match="fails"):
        stamped(folder, "fails", lambda: make("fails"))
    stamped(folder, "two", lambda: make("two"))
    assert tried == ["one", "two", "fails", "two"], "what a failure left behind is made again"


def test_rows_name_sides() -> None:
    assert {name for row in ROWS.values() for name in (row.side, *row.ours)} <= SIDES.keys()
    assert {row.model for row in ROWS.values()} == SHAPES.keys()
    assert not ROWS.keys() & SHAPE_ROWS.keys()
    assert all(find_spec(side.module) for side in SIDES.values())
    assert len(SHAPE_ROWS) == 30


def test_the_first_token_that_differs() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1


def test_pinning_ends() -> None:
    core = Settings(rounds=1, new_tokens=2, threads=1).core
    assert Settings(rounds=1, new_tokens=2, threads=2).core is None
    if core is None:
        pytest.skip("this system pins nothing")
    import os

    before = os.sched_getaffinity(0)
    with pinned(core):
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


def record() -> dict[str, Any]:
    spread = {"p25": 1.5, "p50": 2.0, "p75": 2.5, "p95": 3.0}

    def side(label: str) -> dict[str, Any]:
        return {"label": label, "step_ms": spread, "base_step_ms": spread, "ratio": 1.0, "tokens": [1, 2]}

    peer = {
        "row": "genai-fp32",
        "model": "smollm2-135m",
        "side": "genai-fp32",
        "label": "GenAI",
        "left_out": {"shared-int4": "no room"},
        "sides": {"genai-fp32": side("GenAI"), "shared-fp32": side("PAD-RT shared")},
        "times_ours": {"shared-fp32": spread},
        "exact": True,
        "first_difference": None,
    }
    shape = {
        "row": "tiny-fp32-k5-p64",
        "shape": "tiny",
        "precision": "fp32",
        "top_k": 5,
        "prompt": 64,
        "step_ms": {"base": spread, "shared": spread, "pair": spread},
        "ratio_to_base": {"shared": spread, "pair": spread},
    }
    skipped = {
        "row": "llamacpp-q4",
        "model": "smollm2-135m",
        "label": "llama.cpp",
        "left_out": {},
        "skipped": "no compiler",
    }
    return {"peers": [peer, skipped], "shapes": [shape]}


def test_the_tables() -> None:
    text = tables(json.loads(json.dumps(record())))
    assert (
        "| smollm2-135m | GenAI | 2.0 | 2.0 | 1.00 | 2.0, 2.0 (shared-fp32) | **2.00x** (1.50 to 2.50) | the same 2 |"
        in text
    )
    assert "| tiny | fp32 | 5 | 64 | 2.0 | 2.0 | **2.00** (1.50 to 2.50) | 2.0 | **2.00** (1.50 to 2.50) |" in text
    assert "- llamacpp-q4: no compiler" in text
    assert "- genai-fp32 against shared-int4: no room" in text
    differs = record()
    differs["peers"][0]["first_difference"] = 1
    assert "first differ at 1 of 2 |" in tables(differs)


def test_the_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.latency.plots import draw

    names = {path.name for path in draw(record(), tmp_path)}
    assert names == {"latency-peers.png", "latency-shapes.png"} == {path.name for path in tmp_path.iterdir()}

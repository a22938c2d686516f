"""From stored replies to the record, its tables and its plots: judges count a word, and checks look for one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import estimates, judging
from benchmarks.quality.claims import Claim, claim
from benchmarks.quality.design import PARTS, Design
from benchmarks.quality.examples import examples
from benchmarks.quality.judging import Judging
from benchmarks.quality.methods import BASE, RANDOM, Cell
from benchmarks.quality.mixtures import mixture_row
from benchmarks.quality.replies import JudgedReply, ReplyFile, ReplyStore
from benchmarks.quality.rows import trait_row
from benchmarks.quality.scores import Scores
from benchmarks.quality.sliders import front_row, slider_rows
from benchmarks.quality.soundness import Margins
from benchmarks.quality.table import tables
from benchmarks.quality.traits import load_traits

FEATURES = ("cheerful", "simple", "concise")
QUESTIONS = [f"question {index}" for index in range(4)]
MARKS = dict.fromkeys((BASE, "persrm", "persrm-1", RANDOM), "mark")
Writer = Callable[[Cell, int], str]


@dataclass(frozen=True)
class CountingJudge:
    """How often a word stands in a reply."""

    name: str
    feature: str
    word: str
    equal_words: bool = True
    check: str = ""

    def __call__(self, replies: Sequence[JudgedReply]) -> np.ndarray:
        return np.array([float(reply.plain.split().count(self.word)) for reply in replies])


class Checks:
    """A reply with "moon" in it does not keep to the question; one with "again" repeats itself."""

    def repeats(self, replies: Sequence[JudgedReply]) -> np.ndarray:
        return np.array(["again" in reply.text for reply in replies])

    def checks(self, replies: Sequence[JudgedReply], base: Sequence[JudgedReply]) -> Any:
        assert all(reply.cut for reply in base)  # see `written`: greedy replies of the base
        on_topic, varied = np.array(["moon" not in reply.text for reply in replies]), ~self.repeats(replies)
        return SimpleNamespace(
            on_topic=on_topic, grammatical=np.ones_like(on_topic), varied=varied, sound=on_topic & varied
        )


JUDGES = [
    CountingJudge(f"{feature} {number}", feature, f"{feature}{suffix}", equal_words=feature != "concise")
    for feature in FEATURES
    for number, suffix in (("one", ""), ("two", "!"))
]


@pytest.fixture
def design(tmp_path: Path) -> Design:
    path = tmp_path / "features.json"
    path.write_text(json.dumps({name: {"more": [f"more {name}"], "less": [f"less {name}"]} for name in FEATURES}))
    return Design(load_traits(FEATURES, path), ("persrm", "persrm-1"))


def words(cell: Cell, index: int) -> str:
    """What a guided reply is full of: its weights, rounded up, in words; the base and a random reward say each once."""
    counts = dict.fromkeys(FEATURES, 2)
    if cell.method not in ("base", "random"):
        counts |= {name: 2 + round(2 * weight) for name, weight in cell.weights}
    return " ".join(f"{name} {name}!" for name in FEATURES for _ in range(counts[name])) + f" filler {index}"


def filled(folder: Path, design: Design, write: Writer, parts: Sequence[str] = PARTS) -> Scores:
    """Scores of a store in which every cell of the parts has its replies."""
    store = ReplyStore(folder, MARKS)
    for cell in {cell for part in parts for cell in design.cells(part)}:
        replies = tuple(
            JudgedReply(
                question, write(cell, index), (1, 2), cut=cell.method == "base" and not cell.sample, perplexity=p
            )
            for index, (question, p) in enumerate(zip(QUESTIONS, (2.0, 4.0, 8.0, None), strict=True))
        )
        store.save(cell, ReplyFile(replies, 1.0, 1.0))
    return Scores(store, QUESTIONS, JUDGES, Checks())  # type: ignore[arg-type]


def main_rows(scores: Scores, design: Design, feature: str, weight: float) -> dict[str, Any]:
    rows = [
        trait_row(scores, asked, 4)
        for asked in design.asked("main")
        if (asked.trait.name, asked.weight) == (feature, weight)
    ]
    return {row["method"]: row for row in rows}


def test_a_row_counts_wins_ties_and_sound_wins_of_all_seeds(tmp_path: Path, design: Design) -> None:
    """Two seeds: one wins all of 4, once off the question; the other wins 2, ties 1 and loses 1."""

    def write(cell: Cell, index: int) -> str:
        if cell.persrm == "persrm":
            return "simple simple simple" + " moon" * (index == 0)
        if cell.persrm == "persrm-1":
            return " ".join(["simple"] * (index + 1) + ["pad"] * (2 - index))
        return "simple simple pad"

    row = main_rows(filled(tmp_path, design, write, ["main"]), design, "simple", 1.0)["pad"]
    own = row["judges"]["simple one"]["to_base"]
    assert own["win_by_seed"] == [1.0, 0.625]  # 1, 2, 3, 4 words against 2
    assert own["win"][0] == pytest.approx((4 + 2.5) / 8)
    assert own["ties"] == pytest.approx(1 / 8)
    assert own["sound"][0] == pytest.approx((3 + 2.5) / 8)
    assert row["judges"]["simple one"]["to_prompted"] == own
    assert row["judges"]["simple two"]["to_base"]["win"] == [0.5, 0.5, 0.5]  # that judge sees no difference
    assert row["checks"]["on_topic"][0] == pytest.approx(7 / 8)
    assert row["checks"]["varied"][0] == 1
    assert (row["seeds"], row["questions"]) == (2, 4)
    assert row["perplexity_ratio"][0] == 1
    against = main_rows(filled(tmp_path, design, write, ["main"]), design, "simple", -1.0)["pad"]
    assert against["judges"]["simple one"]["to_base"]["win"][0] == pytest.approx(1.5 / 8)  # control: the other wish


def test_equal_words_take_what_length_gave(tmp_path: Path, design: Design) -> None:
    def write(cell: Cell, index: int) -> str:
        return " ".join(["simple", "concise"] * (6 if cell.method == "pad" else 2))

    scores = filled(tmp_path, design, write, ["main"])
    own = main_rows(scores, design, "simple", 1.0)["pad"]["judges"]["simple one"]["to_base"]
    assert (own["win"][0], own["equal_words"][0], own["sound"][0], own["sound_equal_words"][0]) == (1, 0.5, 1, 0.5)
    counted = main_rows(scores, design, "concise", 1.0)["pad"]["judges"]["concise one"]["to_base"]
    assert (counted["win"][0], counted["equal_words"]) == (1, None)  # a judge that counts words


def test_a_joint_win_needs_every_trait_on_the_same_reply(tmp_path: Path, design: Design) -> None:
    """Either trait wins in half of the replies: both never, always or as chance has it, by which replies."""
    base = "cheerful simple pad pad"
    cheerful, simple, both, none = (
        "cheerful cheerful pad pad",
        "simple simple pad pad",
        "cheerful cheerful simple simple",
        "pad pad pad pad",
    )
    weights = next(weights for weights in design.mixtures if set(weights) == {"cheerful", "simple"})
    for replies, joint in (
        ((cheerful, simple, cheerful, simple), 0.0),
        ((both, none, both, none), 0.5),
        ((both, cheerful, simple, none), 0.25),
        ((base, base, base, base), 0.25),  # ties: half for each trait
        ((both, both + " moon", none, none), 0.5),
    ):
        scores = filled(
            tmp_path / str(joint),
            design,
            lambda cell, index, replies=replies: base if cell.method == "base" else replies[index],
            ["mixtures", "sampled"],
        )
        row = mixture_row(scores, design, weights, 4, sampled=True)
        assert row["first"]["joint"][0] == joint
        assert {rate[0] for rate in row["first"]["each"].values()} == {0.5}
        assert row["first"]["sound_joint"][0] == joint - 0.25 * any("moon" in text for text in replies)
        assert row["first"]["chance"][0] == 0.25
        assert row["second"]["joint"][0] == 0.25  # those judges see no difference


def test_the_front_reaches_beyond_what_goes_nowhere(tmp_path: Path, design: Design) -> None:
    def write(cell: Cell, index: int) -> str:
        text = words(cell, index)
        return text + " cheerful simple" * (
            cell.method in ("base", "random") and index % 2
        )  # or the base's deviation is 0

    row = front_row(filled(tmp_path, design, write, ["front"]), design, ("cheerful", "simple"), 4)
    volume = {group: row["first"][group]["hypervolume"][0] for group in ("pad", "pad_ends", "prompted", "random")}
    # Base: 2 or 3 words, mean 2.5, deviation 0.5; weights of -1 to 1 give 0 to 4 words: -5 to 3 deviations from it.
    # So in each direction one corner dominates all points: (3 + 1)^2, (3 + 1)(5 + 1) twice, (5 + 1)^2.
    assert volume["pad"] == pytest.approx((16 + 24 + 24 + 36) / 4)
    assert volume["pad_ends"] == volume["prompted"] == volume["pad"]
    assert volume["random"] == pytest.approx(1)  # control: replies like the base's
    corner = next(point for point in row["first"]["pad"]["points"] if point["weights"] == [1.0, -1.0])
    assert corner["means"] == [3.0, -5.0]


def test_the_slider_rises_with_the_weight(tmp_path: Path, design: Design) -> None:
    rows = slider_rows(filled(tmp_path, design, words, ["slider"]), design, 4)
    assert [row["judge"] for row in rows] == [judge.name for judge in JUDGES]
    for row in rows:
        assert [mean[0] for mean in row["means"]] == [0, 1, 2, 3, 4]
        assert row["monotonic"]
        assert row["rise"] == [4, 4, 4]
    flat = slider_rows(filled(tmp_path, design, lambda cell, _: "pad" * len(cell.weights), ["slider"]), design, 4)
    assert {tuple(row["rise"]) for row in flat} == {(0, 0, 0)}


def test_a_claim_holds_by_the_judge_that_gives_fewer() -> None:
    def row(
        base: tuple[float, float], prompted: tuple[float, float], repeats: float, perplexity: float | None
    ) -> Claim:
        judges = {
            str(index): {"to_base": {"sound": [own]}, "to_prompted": {"sound": [told]}}
            for index, (own, told) in enumerate(zip(base, prompted, strict=True))
        }
        return claim(
            {
                "judges": judges,
                "repeats": {"rule": [0.1], "mtld": [repeats]},
                "base_repeats": {"rule": [0.1], "mtld": [0.14]},
                "perplexity_ratio": [perplexity],
            }
        )

    assert row((0.71, 0.9), (0.9, 0.61), 0.16, 1.5).holds
    for fails in (
        row((0.71, 0.69), (0.9, 0.61), 0.16, 1.5),
        row((0.71, 0.9), (0.59, 0.9), 0.16, 1.5),
        row((0.71, 0.9), (0.9, 0.61), 0.18, 1.5),
        row((0.71, 0.9), (0.9, 0.61), 0.16, 1.7),
    ):
        assert not fails.holds


def test_all_parts_have_tables_plots_and_replies_to_read(
    tmp_path: Path, design: Design, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots = pytest.importorskip("benchmarks.quality.plots")
    monkeypatch.setitem(estimates.bootstrap.__kwdefaults__, "resamples", 40)  # no figure is checked here
    scores = filled(tmp_path / "replies", design, words)
    margins, store = Margins(0.1, 1.0, 40.0, 4), ReplyStore(tmp_path / "replies", MARKS)
    several = Judging(store, tuple(QUESTIONS), margins, design, tuple((part, 4) for part in PARTS), sampled=True)
    parts: dict[str, Any] = {
        part: list(chain(*(several.judge(scores, part, place) for place in range(several.length(part)))))
        for part in PARTS
    }
    assert parts["main"] == [trait_row(scores, asked, 4) for asked in design.asked("main")]
    assert len(parts["slider"]) == 2 * len(FEATURES)
    timing = {"p25": 6.0, "p50": 7.0, "p75": 8.0, "ratio": 1.0}
    parts["timings"] = dict.fromkeys(("base", "prompted", "system", "pad", "pad_prompted", "random", "persrm"), timing)
    json.dumps(parts, allow_nan=False)
    told = tables({"parts": parts})
    assert told.count("\n## ") == 11
    for wish, kind in product(("cheerful", "academic", "detailed"), ("PAD, 2 seeds", "PAD, random reward")):
        assert f"| {wish} | {kind} |" in told
    made = plots.draw({"parts": parts}, tmp_path / "plots", "quality")
    kinds = ("cost", "win-rates", "beta", "k", "mixtures", "slider", "front")
    assert [path.name for path in made] == [f"quality-{kind}.png" for kind in kinds]
    assert all(path.stat().st_size > 5000 for path in made)
    assert plots.draw({"parts": {"timings": parts["timings"]}}, tmp_path / "none", "quality") == []
    read = examples(scores, design, QUESTIONS[:2])
    assert [each["prompt"] for each in read] == QUESTIONS[:2]
    assert read[0]["replies"]["academic"]["pad"] == words(design.cell("pad", {"simple": -1.0}), 0)


def test_workers_judge_what_one_process_judges(tmp_path: Path, design: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads in place of processes, which have the judges of this test."""
    monkeypatch.setitem(estimates.bootstrap.__kwdefaults__, "resamples", 40)
    monkeypatch.setattr(judging, "load_judges", lambda: JUDGES)
    monkeypatch.setattr(judging, "Soundness", lambda margins: Checks())
    monkeypatch.setattr(judging, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(judging, "_opened", {})
    scores = filled(tmp_path, design, words, ["main", "slider"])
    numbers = (("main", 4), ("slider", 3))
    several = Judging(
        ReplyStore(tmp_path, MARKS), tuple(QUESTIONS), Margins(0.1, 1.0, 40.0, 4), design, numbers, sampled=False
    )
    assert several.parts(["slider", "main"], workers=1) == {
        "slider": slider_rows(scores, design, 3),
        "main": [trait_row(scores, asked, 4) for asked in design.asked("main")],
    }

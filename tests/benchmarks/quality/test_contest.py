from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.quality.design import Design
from benchmarks.quality.methods import BASE, RANDOM
from benchmarks.quality.replies import ReplyStore, is_complete
from benchmarks.quality.rivals import contest as contest_module
from benchmarks.quality.rivals.contest import BEST_OF, IN_TORCH, Contest
from benchmarks.quality.rivals.soup import read_lora
from benchmarks.quality.rivals.summary import summary, table
from benchmarks.quality.rivals.torch_replies import TorchRivals
from benchmarks.quality.traits import DIRECTIONS, load_traits
from tests.support import tiny_bundles, tiny_training

FEATURES = ("cheerful", "simple")
QUESTIONS = ["the cook", "boil an egg and wait", "why"]
WEIGHTS = {"simple": -1.0}


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Contest:
    """On a tiny base and PersRM; its one LoRA stands for those of all features."""
    root = tmp_path_factory.mktemp("contest")
    tiny_training.write_random_persrm(root, FEATURES)
    bundle = tiny_bundles.export(root / "bundle", root / "base", [root / "taste"], max_top_k=100, max_batch=8)
    said = {name: {"more": [f"more {name}"], "less": [f"less {name}"]} for name in DIRECTIONS}
    (root / "features.json").write_text(json.dumps(said))
    marks = {BASE: "a", "taste": "b", RANDOM: "c"}
    run = SimpleNamespace(
        base=root / "base",
        bundles=dict.fromkeys(marks, bundle),
        factors={},
        marks=marks,
        design=Design(load_traits(FEATURES, root / "features.json"), ("taste",)),
        store=lambda _questions: ReplyStore(root / "replies", marks),
    )

    class Tiny(Contest):
        def _load_torch(self) -> TorchRivals:
            backbone = tiny_training.load(root / "base")
            lora = read_lora(root / "taste")
            vectors = {name: torch.full((84,), float(at + 1)) for at, name in enumerate(FEATURES)}
            return TorchRivals(backbone, dict.fromkeys(FEATURES, lora), vectors)

    arguments: Any = SimpleNamespace(questions="unseen", ask="{x}", perplexities=2)
    return Tiny(run, arguments, QUESTIONS)  # type: ignore[arg-type]


def test_every_rival_leaves_replies_that_the_benchmark_finds(contest: Contest) -> None:
    contest.run.incomplete = lambda *_: []  # type: ignore[method-assign]
    contest.run.fill = lambda *_: None  # type: ignore[method-assign]
    cells = [contest.cell(method, WEIGHTS) for method in ("base", "soup", "vector", *BEST_OF)]
    store = contest.fill(cells)
    assert len({cell.slug for cell in cells}) == len(cells)
    for cell in cells:
        assert is_complete(store, cell, QUESTIONS, num_perplexities=2)
        assert [reply.prompt for reply in store.load(cell, QUESTIONS).replies] == QUESTIONS
    in_torch = store.load(cells[0], QUESTIONS).replies
    by_bundle = contest.generator(contest.run.design.cell("base", WEIGHTS), QUESTIONS).replies
    assert [reply.token_ids[:16] for reply in in_torch] == [
        reply.token_ids[:16] for reply in by_bundle
    ]  # then near-ties
    assert [one.token_ids for one in store.load(cells[1], QUESTIONS).replies] != [one.token_ids for one in in_torch]


def test_best_of_n_chooses_among_the_benchmark_s_own_samples(contest: Contest) -> None:
    contest.run.incomplete = lambda *_: []  # type: ignore[method-assign]
    contest.run.fill = lambda *_: None  # type: ignore[method-assign]
    cell = contest.cell("best_of_4", WEIGHTS)
    chosen = contest.fill([cell]).load(cell, QUESTIONS).replies
    samples = [
        contest.generator(contest.run.design.cell("base", WEIGHTS, sample=at), QUESTIONS).replies for at in range(1, 5)
    ]
    for index, reply in enumerate(chosen):
        assert reply.token_ids in [some[index].token_ids for some in samples]


def test_strengths_are_part_of_the_cell(contest: Contest) -> None:
    weak, strong = (contest.cell("vector", WEIGHTS, beta=beta) for beta in (2.0, 8.0))
    assert weak.slug != strong.slug
    assert weak.persrm == IN_TORCH
    assert contest.cell("pad", WEIGHTS) == contest.run.design.cell("pad", WEIGHTS)


def test_costs_are_held_against_the_base_of_the_same_place(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest_module, "OF_BUNDLE", ("prompted", "pad"))  # persrm has more candidates than tiny tokens
    costs = contest.costs()
    assert list(costs["torch"]) == ["base", "soup", "vector"]
    assert {"base", "prompted", "pad", *BEST_OF} <= costs["bundle"].keys()
    assert costs["torch"]["base"]["ratio"] == costs["bundle"]["base"]["ratio"] == 1.0


def test_the_summary_is_a_mean_over_users() -> None:
    def row(method: str, win: float, **setting: float) -> dict[str, Any]:
        opinion = {"win": [win, 0, 1], "sound": [win / 2, 0, 1], "equal_words": None}
        shared = {"repeats": {"mtld": [0.1, 0, 1], "rule": [0.2, 0, 1]}, "perplexity_ratio": [1.5, 1, 2]}
        judges = {"one": {"to_base": opinion}, "two": {"to_base": opinion}}
        return {"method": method, **setting, **shared, "judges": judges}

    rows = [row("soup", 0.4), row("soup", 0.8), row("pad", 0.9)]
    costs = {"torch": {"soup": {"ratio": 1.0}}, "bundle": {"pad": {"ratio": 1.1}}}
    soup, pad = summary(rows, costs)
    assert (soup["win_first"], soup["sound_second"], soup["equal_words_first"]) == (0.6, 0.3, None)
    assert (soup["cost"], pad["cost"], pad["repeats"]) == (1.0, 1.1, 0.1)
    strengths = summary([row("soup", 0.4, beta=1.0), row("soup", 0.8, beta=2.0)], costs)
    assert [line["win_first"] for line in strengths] == [0.4, 0.8]
    assert "| soup of LoRAs 2.0 | 1.00 | 80 | 80 | 40 | 40 | 1.50x | 10 |" in table(strengths)

"""A row of the comparison: one system and ours in processes of their own, round by round in turn."""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from benchmarks.common.process import RowError
from benchmarks.common.settings import Settings
from benchmarks.latency.peers.loop import PeerTask
from benchmarks.latency.peers.models import huggingface
from benchmarks.latency.peers.process import PeerProcess
from benchmarks.latency.peers.sides import ROWS, SIDES
from benchmarks.latency.shapes import BUILD, SMOLLM2
from pad_rt.bench.rounds import Spread, compare, turn

QUESTION = (
    "I would like to spend a weekend by the sea with my family in late autumn, when it is cold. Where in Europe should "
    "we go, and what can we do there when it rains?"
)
TOP_K = 10
BETA = 0.5  # both models count, so that a wrong mix shows in the tokens; the time does not depend on it
WARMUP = 4  # tokens


def prompt_ids() -> list[int]:
    """Token ids that base and PersRM read, of any model: the person's weights change no prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(huggingface(SMOLLM2, "base"))
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    return ids


def measure_row(name: str, settings: Settings) -> dict[str, Any]:
    """The record of one row; where the system cannot be had, its `skipped` says why."""
    row = ROWS[name]
    record: dict[str, Any] = {"row": name, "model": row.model, "side": row.side, "left_out": {}}
    record["label"] = SIDES[row.side].label
    with ExitStack() as stack:
        processes: dict[str, PeerProcess] = {}
        for side in (row.side, *row.ours):
            try:
                processes[side] = stack.enter_context(_start(row.model, side, settings))
            except RowError as error:
                if side == row.side:
                    return record | {"skipped": str(error)}
                record["left_out"][side] = str(error)
        if len(processes) == 1:
            return record | {"skipped": "; ".join(record["left_out"].values())}
        try:
            rounds = _take_turns(processes, settings)
        except RowError as error:
            return record | {"skipped": str(error)}
        record["sides"] = {
            side: {"label": SIDES[side].label, "versions": processes[side].versions, **_figures(taken)}
            for side, taken in rounds.items()
        }
    ours = [side for side in rounds if side != row.side]
    medians = {side: [statistics.median(one["step_ms"]) for one in taken] for side, taken in rounds.items()}
    record["times_ours"] = {side: asdict(compare(medians[row.side], medians[side])) for side in ours}
    record["exact"] = SIDES[row.side].exact and SIDES[ours[0]].exact
    record["first_difference"] = first_difference(rounds[row.side][0]["tokens"], rounds[ours[0]][0]["tokens"])
    return record


def first_difference(tokens: list[int], others: list[int]) -> int | None:
    """The index of the first token that is not the other's, or None."""
    pairs = enumerate(zip(tokens, others, strict=True))
    return next((index for index, (token, other) in pairs if token != other), None)


def _start(model: str, side: str, settings: Settings) -> PeerProcess:
    """Make what a side needs and start it; raises `RowError`."""
    ids = prompt_ids()
    files = {name: str(path) for name, path in SIDES[side].files(model, settings.threads).items()}
    task = PeerTask(
        base_ids=ids,
        reward_ids=ids,
        top_k=TOP_K,
        beta=BETA,
        max_new_tokens=max(settings.new_tokens, WARMUP),
        threads=settings.threads,
        core=settings.core,
        files=files,
    )
    log = BUILD / f"{model}-{side}.log"
    return PeerProcess(SIDES[side].python(), SIDES[side].module, task, log)


def _take_turns(processes: dict[str, PeerProcess], settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Every process's rounds, after one that warms it up."""
    for process in processes.values():
        process.round(WARMUP, guided_first=True)
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in processes}
    for index in range(settings.rounds):
        for side in turn(list(processes), index):
            rounds[side].append(processes[side].round(settings.new_tokens, guided_first=index % 2 == 0))
    return rounds


def _figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds of one side over all rounds, and the tokens, which must be the same in each."""
    figures: dict[str, Any] = {}
    for at in ("", "base_"):
        steps = [value for one in rounds for value in one[f"{at}step_ms"]]
        figures[f"{at}step_ms"] = asdict(Spread.of(steps))
        figures[f"{at}prefill_ms"] = statistics.median(one[f"{at}prefill_ms"] for one in rounds)
        figures[f"{at}tokens"] = rounds[0][f"{at}tokens"]
        if len({json.dumps(one[f"{at}tokens"]) for one in rounds}) > 1:
            figures[f"{at}tokens_vary"] = True
    figures["ratio"] = figures["step_ms"]["p50"] / figures["base_step_ms"]["p50"]
    figures["tokens_per_s"] = 1e3 / figures["step_ms"]["p50"]
    return figures

"""What graphs did, held against what torch does: candidates, logits, scores, choices and caches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pad_export.plan import Plan
from pad_export.trunk import Trunk
from pad_export.verify.findings import Findings, Number, Place
from pad_export.verify.graph_run import GraphRun
from pad_export.verify.row_model import RowInput, RowModel, RowOutput, TrunkModel
from pad_export.verify.tolerance import difference
from pad_export.weights.stored import StoredWeights

COMPARED: tuple[tuple[Number, bool], ...] = (("logits", False), ("logits", True), ("KV", False), ("KV", True))

Outputs = dict[tuple[int, int], RowOutput]  # by (sequence, row)


def forward(plan: Plan, runs: list[GraphRun], stored: list[StoredWeights | None], dtype: torch.dtype) -> list[Outputs]:
    """Run all rows of each torch model: what they gave, by run."""
    outputs: list[Outputs] = [{} for _ in runs]
    kinds = dict.fromkeys((row.trunk, row.persrm) for run in runs for planned in run.plans for row in planned.rows)
    for trunk in sorted({trunk for trunk, _ in kinds}):
        models = TrunkModel(plan, trunk, stored[trunk], dtype)
        for persrm in [persrm for kind, persrm in kinds if kind == trunk]:
            with models.row_model(persrm) as model:
                _forward_rows(runs, outputs, trunk, persrm, model)
    return outputs


def compare(plan: Plan, runs: list[GraphRun], outputs: list[Outputs], findings: Findings) -> None:
    """Compare run by run."""
    for number, (run, output) in enumerate(zip(runs, outputs, strict=True)):
        label = f"run {number} ({'guided' if run.traces else 'base alone'}, batch {len(run.plans)})"
        for sequence in range(len(run.plans)):
            _compare_choices(run, sequence, output, f"{label}, sequence {sequence}", findings)
        _compare_caches(run, output, plan.trunks, label, findings)


def own_errors(runs: list[GraphRun], outputs: list[Outputs], exact: list[Outputs]) -> dict[tuple[Number, bool], float]:
    """How far torch's float32 is from its float64 at most."""
    own = dict.fromkeys(COMPARED, 0.0)
    for run, output, precise in zip(runs, outputs, exact, strict=True):
        for (sequence, index), row in output.items():
            of_reward = run.plans[sequence].rows[index].persrm is not None
            other = precise[sequence, index]
            own["logits", of_reward] = max(own["logits", of_reward], difference(row.logits, other.logits))
            for (_, *kept), (_, *exactly) in zip(row.cache, other.cache, strict=True):
                gaps = [difference(ours, theirs) for ours, theirs in zip(kept, exactly, strict=True) if theirs.numel()]
                own["KV", of_reward] = max(own["KV", of_reward], *gaps, 0.0)
    return own


def _forward_rows(
    runs: list[GraphRun], outputs: list[Outputs], trunk: int, persrm: int | None, model: RowModel
) -> None:
    """Run all rows of one kind through their torch model, at once."""
    inputs, places = [], []
    for run, output in zip(runs, outputs, strict=True):
        for sequence, plan in enumerate(run.plans):
            for index, (row, reading) in enumerate(zip(plan.rows, run.readings(sequence), strict=True)):
                if (row.trunk, row.persrm) == (trunk, persrm):
                    inputs.append(RowInput(run.ids(sequence, index), len(run.tokens), reading.weights))
                    places.append((output, (sequence, index)))
    for (output, place), result in zip(places, model.forward(inputs), strict=True):
        output[place] = result


def _compare_choices(run: GraphRun, sequence: int, output: Outputs, label: str, findings: Findings) -> None:
    rows, readings = run.plans[sequence].rows, run.readings(sequence)
    coefficients = [reading.coefficient for reading in readings]
    of_reward = [row.persrm is not None for row in rows]
    for step, tokens in enumerate(run.tokens):
        at, token = f"{label}, token {step}", tokens[sequence]
        logits = [output[sequence, row].logits[step] for row in range(len(rows))]  # [rows][vocab]
        slack = 2 * max(findings.tolerance["logits", side] for side in of_reward)
        slack *= max(1.0, float(logits[0].abs().max()))
        if not run.traces:
            if float(logits[0].max() - logits[0][token]) > slack:
                findings.fail("choice", f"{at}: chose {token}, torch {int(logits[0].argmax())}")
            continue
        trace = run.traces[step][sequence]
        candidates = torch.from_numpy(trace.candidates)
        expected = torch.stack([row_logits[candidates] for row_logits in logits])  # [rows, k]
        for side, ours, theirs in zip(of_reward, trace.row_logits, expected, strict=True):
            findings.compare_logits(torch.from_numpy(ours), theirs, f"{at}: row logits", scale=expected, of_reward=side)
        missed = logits[0].topk(len(candidates)).values[-1] - expected[0].min()
        if float(missed) > slack:
            findings.fail("choice", f"{at}: candidates are not the base's best")
        scores = torch.tensor(coefficients, dtype=expected.dtype) @ expected
        chosen = scores[candidates == token]
        if len(chosen) != 1 or float(scores.max() - chosen) > sum(map(abs, coefficients)) * slack:
            findings.fail("choice", f"{at}: chose {token}, torch {int(candidates[scores.argmax()])}")


def _compare_caches(run: GraphRun, output: Outputs, trunks: Sequence[Trunk], label: str, findings: Findings) -> None:
    for (sequence, index, layer), caches in run.caches.items():
        row = run.plans[sequence].rows[index]
        first, *kept = output[sequence, index].cache[layer]
        for name, ours, theirs in zip(("keys", "values"), caches, kept, strict=True):
            if not theirs.numel():  # a short row beside a long one: the window kept padding only
                continue
            place = Place(trunks[row.trunk].name, layer, name, of_reward=row.persrm is not None)
            findings.compare_cached(
                ours[:, first : first + theirs.shape[1]],
                theirs,
                f"{label}, trunk {row.trunk}, layer {layer}: cached {name}",
                place,
            )

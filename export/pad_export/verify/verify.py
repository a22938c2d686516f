"""Verification of a written bundle: names, axes and types, then prefill and eight steps against the torch models.

The graph runs first and chooses its own tokens; torch then reads prompt and tokens in one forward pass per row. Every
position's candidates, row logits, scores and choice are compared, and every KV tensor at the end. All failures are
reported, not the first, and before them what kind they are. Where something differs, torch computes once more in
float64, so that what its own float32 misses is not held against the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from pad_runtime.decode.step import GraphStep, StepRequest, StepTrace

from pad_export.graph.writer import element_type, torch_type
from pad_export.plan import Plan
from pad_export.trunk import Trunk
from pad_export.verify.findings import Findings, Number, Place
from pad_export.verify.float32_twin import float32_twin
from pad_export.verify.float64 import Float64Arithmetic
from pad_export.verify.row_model import RowInput, RowModel, RowOutput, TrunkModel
from pad_export.verify.tolerance import LARGEST, OWN_ERRORS, TOLERANCE, allowance, difference
from pad_export.verify.torch_model import unread_tensors
from pad_export.weights.calibrate import perplexity
from pad_export.weights.stored import StoredWeights
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, read_manifest
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.row import Reward, Row, TrunkPrompts, pad_rows, plan_rows

NUM_STEPS = 8
_BETA = 1.3  # neither 0 nor 1: every row counts
# (base, reward) prompt lengths of each sequence: one alone, two ragged. Where the reward's is 0, it reads the base's.
_BATCHES = (((5, 9),), ((7, 0), (3, 8)))
_COMPARED: tuple[tuple[Number, bool], ...] = (("logits", False), ("logits", True), ("KV", False), ("KV", True))

_Outputs = dict[tuple[int, int, int], RowOutput]  # by (sequence, trunk, row)


@dataclass
class _Run:
    """What the graph did: the rows it was given, the tokens it chose, and what it weighed."""

    sequences: list[list[list[Row]]]
    tokens: list[list[int]] = field(default_factory=list)  # [step][sequence]
    traces: list[StepTrace] = field(default_factory=list)
    caches: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def verify_bundle(folder: Path, plan: Plan) -> str:
    """Hold a bundle against the models it came from.

    Returns:
        What was compared and the worst differences, and what quantisation cost each trunk: a line each.

    Raises:
        VerificationError: every difference found.
    """
    manifest = read_manifest(folder)
    tolerance = TOLERANCE[manifest.float_type]
    findings = Findings(dict.fromkeys(_COMPARED, tolerance))
    _check_reading(plan, findings)
    _check_graphs(folder, manifest, plan, findings)
    if findings.failures:
        raise findings.error()
    stored = [_stored(folder, manifest, trunk) for trunk in plan.trunks]
    with _runnable(folder, manifest) as runnable:
        runs = [run for guided in (True, False) for run in _run_graph(runnable, plan, guided)]
    dtype = torch_type(manifest.float_type)
    outputs = _forward(plan, runs, stored, dtype)
    _compare(plan, runs, outputs, findings)
    slack = ""
    if findings.failures:
        findings, slack = _compare_in_float64(plan, runs, stored, dtype, outputs, findings)
    if findings.failures:
        raise findings.error()
    guided = [run for run in runs if run.traces]
    lines = [
        _compare_perplexity(trunk, weights, manifest.precision)
        for trunk, weights in zip(plan.trunks, stored, strict=True)
        if weights
    ]
    arithmetic = f" in float32 arithmetic on the {manifest.precision} weights" if _has_twin(manifest) else ""
    lines.append(
        f"verified{arithmetic} against torch: {len(guided)} batches x {min(len(run.tokens) for run in guided)} tokens, "
        f"worst difference {findings.worst['logits']:.1e} (logits), {findings.worst['KV']:.1e} (KV), "
        f"tolerance {tolerance:.0e}{slack}"
    )
    return "\n".join(lines)


def _stored(folder: Path, manifest: Manifest, trunk: Trunk) -> StoredWeights | None:
    """What a bundle keeps in blocks of a trunk."""
    return StoredWeights(folder, manifest.graphs[contract.STEP_GRAPH].file, trunk) or None


def _compare_perplexity(trunk: Trunk, stored: StoredWeights, precision: str) -> str:
    """One line: what the weights in blocks cost, on real text that calibration did not read."""
    whole, ours = perplexity(trunk), perplexity(trunk, stored)
    return (
        f"{trunk.name}: perplexity {ours:.2f} at {precision}, {whole:.2f} with whole weights ({ours / whole - 1:+.1%})"
    )


# -- the graphs themselves ------------------------------------------------------------------------------------------


def _check_reading(plan: Plan, findings: Findings) -> None:
    """Tensors that transformers finds no place for: past our reader, which may take for known what is not."""
    for trunk in plan.trunks:
        for name in unread_tensors(trunk.checkpoint):
            findings.fail("tensors", f"{trunk.name}: {name} of {trunk.checkpoint.path}")


def _check_graphs(folder: Path, manifest: Manifest, plan: Plan, findings: Findings) -> None:
    """KV inputs and outputs of both graphs: there, alike, of the right type and shape."""
    for name, trunks in ((contract.STEP_GRAPH, plan.trunks), (contract.BASE_GRAPH, plan.trunks[:1])):
        model = onnx.load(folder / manifest.graphs[name].file, load_external_data=False)
        values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
        for trunk in trunks:
            for layer in range(trunk.spec.num_layers):
                for tensor in (
                    contract.past_key(layer),
                    contract.past_value(layer),
                    contract.present_key(layer),
                    contract.present_value(layer),
                ):
                    kind = values.get(trunk.prefix + tensor)
                    if kind is None:
                        findings.fail("interface", f"{name}: no {trunk.prefix}{tensor}")
                        continue
                    sizes = [dim.dim_value for dim in kind.shape.dim]
                    expected = [0, trunk.spec.num_kv_heads, 0, trunk.spec.head_dim]
                    if sizes != expected or kind.elem_type != element_type(manifest.float_type):
                        findings.fail("interface", f"{name}: {trunk.prefix}{tensor} is {sizes}, expected {expected}")


# -- the run --------------------------------------------------------------------------------------------------------


def _has_twin(manifest: Manifest) -> bool:
    """Whether ONNX Runtime's CPU provider lacks the bundle's element type, so that its float32 twin runs instead."""
    return manifest.float_type == "bfloat16"


def _runnable(folder: Path, manifest: Manifest) -> AbstractContextManager[Path]:
    """The bundle, or its twin for as long as it is needed."""
    return float32_twin(folder, manifest) if _has_twin(manifest) else nullcontext(folder)


def _run_graph(folder: Path, plan: Plan, guided: bool) -> list[_Run]:
    """Every batch that the bundle's limits allow, on one graph, whose weights leave memory at the end."""
    bundle = Bundle(folder, low_memory=True)  # export's peak memory is a promise
    room = max(1, bundle.manifest.max_length - NUM_STEPS - 1)
    batches = [
        tuple((min(base, room), min(reward, room)) for base, reward in lengths)
        for lengths in _BATCHES
        if len(lengths) <= bundle.manifest.max_batch
    ]
    return [_run(bundle, guided, _sequences(bundle, plan, lengths, guided)) for lengths in batches]


def _sequences(bundle: Bundle, plan: Plan, lengths: tuple[tuple[int, int], ...], guided: bool) -> list[list[list[Row]]]:
    """Random prompts, and every PersRM of the bundle at once."""
    generator = torch.Generator().manual_seed(len(lengths))

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(plan.base.spec.vocab_size, (length,), generator=generator).tolist())

    sequences = []
    for base, reward in lengths:
        read = prompt(base)
        rewards = [
            Reward(index, tuple(persrm.default_weights), 1.0, prompt(reward) if reward else read)
            for index, persrm in enumerate(bundle.manifest.persrms)
        ]
        sequences.append(plan_rows(bundle.manifest, read, rewards if guided else [], _BETA))
    return pad_rows(sequences)


def _run(bundle: Bundle, guided: bool, sequences: list[list[list[Row]]]) -> _Run:
    manifest = bundle.manifest
    step: GraphStep = bundle.guided_step() if guided else bundle.base_step()
    longest = max(len(row.prompt) for rows in sequences for trunk in rows for row in trunk)
    num_tokens = min(NUM_STEPS + 1, manifest.max_length - longest)
    request = StepRequest(
        sequences=sequences,
        max_new_tokens=num_tokens,
        top_k=min(manifest.max_top_k, 10),
        temperature=0.0,
        top_p=1.0,
        seeds=(0,) * len(sequences),
        trace=guided,
    )
    run = _Run(sequences)
    for index in range(num_tokens):
        ids = step.step() if index else step.prefill(request)
        run.tokens.append(list(ids))
        if guided:
            run.traces.append(step.trace())
    for trunk in range(len(manifest.trunks) if guided else 1):
        for layer in range(manifest.trunks[trunk].num_layers):
            key, value = step.cache(trunk, layer)
            run.caches[trunk, layer] = (torch.from_numpy(key).float(), torch.from_numpy(value).float())
    return run


# -- the comparison -------------------------------------------------------------------------------------------------


def _forward(plan: Plan, runs: list[_Run], stored: list[StoredWeights | None], dtype: torch.dtype) -> list[_Outputs]:
    """Run all rows of each torch model: what they gave, by run."""
    outputs: list[_Outputs] = [{} for _ in runs]
    kinds = {
        (trunk, row.persrm)
        for run in runs
        for rows in run.sequences
        for trunk in range(len(rows))
        for row in rows[trunk]
    }
    for trunk in sorted({trunk for trunk, _ in kinds}):
        models = TrunkModel(plan, trunk, stored[trunk], dtype)
        for persrm in [persrm for kind, persrm in kinds if kind == trunk]:
            with models.row_model(persrm) as model:
                _forward_rows(runs, outputs, trunk, persrm, model)
    return outputs


def _compare(plan: Plan, runs: list[_Run], outputs: list[_Outputs], findings: Findings) -> None:
    """Compare run by run."""
    for number, (run, output) in enumerate(zip(runs, outputs, strict=True)):
        label = f"run {number} ({'guided' if run.traces else 'base alone'}, batch {len(run.sequences)})"
        _compare_choices(run, output, label, findings)
        _compare_caches(run, output, plan.trunks, label, findings)


def _compare_in_float64(
    plan: Plan,
    runs: list[_Run],
    stored: list[StoredWeights | None],
    dtype: torch.dtype,
    outputs: list[_Outputs],
    findings: Findings,
) -> tuple[Findings, str]:
    """Judge again, by torch in float64, what torch in float32 may have got wrong itself under a very strong adapter.

    Returns:
        What is found, and the words that say by what tolerance.
    """
    with Float64Arithmetic():
        exact = _forward(plan, runs, stored, dtype)
    own = _own_errors(runs, outputs, exact)
    again = Findings(
        {key: allowance(limit, own[key]) for key, limit in findings.tolerance.items()}, own_error=max(own.values())
    )
    _compare(plan, runs, exact, again)
    base, reward = (max(own["logits", of_reward], own["KV", of_reward]) for of_reward in (False, True))
    error = f"{base:.1e} in base rows, {reward:.1e} in reward rows"
    return again, f" beside {OWN_ERRORS} times the error of torch's own float32 ({error}), {LARGEST:.0e} at most"


def _own_errors(runs: list[_Run], outputs: list[_Outputs], exact: list[_Outputs]) -> dict[tuple[Number, bool], float]:
    """How far torch's float32 is from its float64 at most."""
    own = dict.fromkeys(_COMPARED, 0.0)
    for run, output, precise in zip(runs, outputs, exact, strict=True):
        for (sequence, trunk, index), row in output.items():
            of_reward = run.sequences[sequence][trunk][index].persrm is not None
            other = precise[sequence, trunk, index]
            own["logits", of_reward] = max(own["logits", of_reward], difference(row.logits, other.logits))
            for (_, *kept), (_, *exactly) in zip(row.cache, other.cache, strict=True):
                gaps = [difference(ours, theirs) for ours, theirs in zip(kept, exactly, strict=True) if theirs.numel()]
                own["KV", of_reward] = max(own["KV", of_reward], *gaps, 0.0)
    return own


def _forward_rows(
    runs: list[_Run],
    outputs: list[_Outputs],
    trunk: int,
    persrm: int | None,
    model: RowModel,
) -> None:
    """Run all rows of one kind through their torch model, at once."""
    inputs, places = [], []
    for run, output in zip(runs, outputs, strict=True):
        for sequence, rows in enumerate(run.sequences):
            for index, row in enumerate(rows[trunk]):
                if row.persrm == persrm:
                    ids = (*row.prompt, *(tokens[sequence] for tokens in run.tokens[:-1]))
                    inputs.append(RowInput(ids, len(run.tokens), row.weights))
                    places.append((output, (sequence, trunk, index)))
    for (output, place), result in zip(places, model.forward(inputs), strict=True):
        output[place] = result


def _compare_choices(run: _Run, output: _Outputs, label: str, findings: Findings) -> None:
    for sequence, rows in enumerate(run.sequences):
        flat = [(trunk, index, row) for trunk in range(len(rows)) for index, row in enumerate(rows[trunk])]
        for step, tokens in enumerate(run.tokens):
            at = f"{label}, sequence {sequence}, token {step}"
            logits = [output[sequence, trunk, index].logits[step] for trunk, index, _ in flat]  # [rows][vocab]
            limits = [findings.tolerance["logits", row.persrm is not None] for _, _, row in flat]
            slack = 2 * max(limits) * max(1.0, float(logits[0].abs().max()))
            if not run.traces:
                if float(logits[0].max() - logits[0][tokens[sequence]]) > slack:
                    findings.fail("choice", f"{at}: chose {tokens[sequence]}, torch {int(logits[0].argmax())}")
                continue
            trace = run.traces[step]
            candidates = torch.from_numpy(trace.candidates[sequence])
            expected = torch.stack([row_logits[candidates] for row_logits in logits])  # [rows, k]
            for (_, _, row), ours, theirs in zip(flat, trace.row_logits[sequence], expected, strict=True):
                findings.compare_logits(
                    torch.from_numpy(ours),
                    theirs,
                    f"{at}: row logits",
                    scale=expected,
                    of_reward=row.persrm is not None,
                )
            missed = logits[0].topk(len(candidates)).values[-1] - expected[0].min()
            if float(missed) > slack:
                findings.fail("choice", f"{at}: candidates are not the base's best")
            scores = torch.tensor([row.coefficient for _, _, row in flat], dtype=expected.dtype) @ expected
            chosen = scores[candidates == tokens[sequence]]
            total = sum(abs(row.coefficient) for _, _, row in flat)
            if len(chosen) != 1 or float(scores.max() - chosen) > total * slack:
                findings.fail("choice", f"{at}: chose {tokens[sequence]}, torch {int(candidates[scores.argmax()])}")


def _compare_caches(run: _Run, output: _Outputs, trunks: Sequence[Trunk], label: str, findings: Findings) -> None:
    for (trunk, layer), caches in run.caches.items():
        width, read = len(run.sequences[0][trunk]), TrunkPrompts.of(run.sequences, trunk)
        for (sequence, row_trunk, index), result in output.items():
            if row_trunk != trunk:
                continue
            rows = run.sequences[sequence][trunk]
            first, *kept = result.cache[layer]
            for name, ours, theirs in zip(("keys", "values"), caches, kept, strict=True):
                if not theirs.numel():  # a short row beside a long one: the window kept padding only
                    continue
                row = sequence * width + index
                at = read.rows[row] if layer < trunks[trunk].prompt_layers else row
                kept_ours = ours[at, :, first : first + theirs.shape[1]]
                place = Place(trunks[trunk].name, layer, name, of_reward=rows[index].persrm is not None)
                findings.compare_cached(
                    kept_ours, theirs, f"{label}, trunk {trunk}, layer {layer}: cached {name}", place
                )

"""Verification of a written bundle: names, axes and types, then prefill and eight steps against the torch models.

The graph runs first and chooses its own tokens; torch then reads prompt and tokens in one forward pass per row. Every
position's candidates, row logits, scores and choice are compared, and every KV tensor at the end. All failures are
reported, with a diagnosis before them. If anything differs, torch computes once more in float64, so that torch's own
rounding does not count against the graph.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from pad_export.graph.writer import element_type, torch_type
from pad_export.plan import Plan
from pad_export.trunk import Trunk
from pad_export.verify.compare import COMPARED, Outputs, compare, forward, own_errors
from pad_export.verify.findings import Findings
from pad_export.verify.float64 import Float64Arithmetic
from pad_export.verify.graph_run import GraphRun, has_twin, run_graph, runnable
from pad_export.verify.tolerance import LARGEST, OWN_ERRORS, TOLERANCE, allowance
from pad_export.verify.torch_model import unread_tensors
from pad_export.weights.calibrate import perplexity
from pad_export.weights.stored import StoredWeights
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, read_manifest


def verify_bundle(folder: Path, plan: Plan) -> str:
    """Compare a bundle with the models that it came from.

    Returns:
        Lines that say what quantisation cost each trunk, what was compared, and the largest differences.

    Raises:
        VerificationError: every difference found.
    """
    manifest = read_manifest(folder)
    tolerance = TOLERANCE[manifest.float_type]
    findings = Findings(dict.fromkeys(COMPARED, tolerance))
    _check_reading(plan, findings)
    _check_graphs(folder, manifest, plan, findings)
    if findings.failures:
        raise findings.error()
    stored = [_stored(folder, manifest, trunk) for trunk in plan.trunks]
    with runnable(folder, manifest) as path:
        runs = [run for guided in (True, False) for run in run_graph(path, plan, guided=guided)]
    dtype = torch_type(manifest.float_type)
    outputs = forward(plan, runs, stored, dtype)
    compare(plan, runs, outputs, findings)
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
    arithmetic = f" in float32 arithmetic on the {manifest.precision} weights" if has_twin(manifest) else ""
    lines.append(
        f"verified{arithmetic} against torch: {len(guided)} batches x {min(len(run.tokens) for run in guided)} tokens, "
        f"worst difference {findings.worst['logits']:.1e} (logits), {findings.worst['KV']:.1e} (KV), "
        f"tolerance {tolerance:.0e}{slack}"
    )
    return "\n".join(lines)


def _stored(folder: Path, manifest: Manifest, trunk: Trunk) -> StoredWeights | None:
    """The weights of a trunk that the bundle keeps in blocks; None if there are none."""
    return StoredWeights(folder, manifest.graphs[contract.STEP_GRAPH].file, trunk) or None


def _compare_perplexity(trunk: Trunk, stored: StoredWeights, precision: str) -> str:
    """A line: perplexity with the weights in blocks and with whole weights, on text that calibration did not read."""
    whole, ours = perplexity(trunk), perplexity(trunk, stored)
    return (
        f"{trunk.name}: perplexity {ours:.2f} at {precision}, {whole:.2f} with whole weights ({ours / whole - 1:+.1%})"
    )


# -- the graphs themselves ------------------------------------------------------------------------------------------


def _check_reading(plan: Plan, findings: Findings) -> None:
    """Note tensors that transformers does not use, since our reader may wrongly take a tensor for a known one."""
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


def _compare_in_float64(
    plan: Plan,
    runs: list[GraphRun],
    stored: list[StoredWeights | None],
    dtype: torch.dtype,
    outputs: list[Outputs],
    findings: Findings,
) -> tuple[Findings, str]:
    """Judge again, by torch in float64, what torch in float32 may have got wrong itself under a very strong adapter.

    Returns:
        What is found, and the words that say by what tolerance.
    """
    with Float64Arithmetic():
        exact = forward(plan, runs, stored, dtype)
    own = own_errors(runs, outputs, exact)
    again = Findings(
        {key: allowance(limit, own[key]) for key, limit in findings.tolerance.items()}, own_error=max(own.values())
    )
    compare(plan, runs, exact, again)
    base, reward = (max(own["logits", of_reward], own["KV", of_reward]) for of_reward in (False, True))
    error = f"{base:.1e} in base rows, {reward:.1e} in reward rows"
    return again, f" beside {OWN_ERRORS} times the error of torch's own float32 ({error}), {LARGEST:.0e} at most"

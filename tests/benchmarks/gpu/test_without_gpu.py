"""The GPU benchmark in the form that it has without a GPU: its rows, marks and arithmetic. No time is asserted."""

from __future__ import annotations

import json
import time
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common.llama_shapes import LLAMA_SHAPES, write_base
from benchmarks.common.settings import Settings
from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import copy_bandwidth, process, static_cache
from benchmarks.gpu import group as gpu_group
from benchmarks.gpu import machine as gpu_machine
from benchmarks.gpu.correctness import read_report
from benchmarks.gpu.devices import export_options
from benchmarks.gpu.random_weights import RandomWeights, parameter_shapes
from benchmarks.gpu.rows import OURS, PRECISIONS, TRANSFORMERS, Group, cpu_groups, gpu_groups
from benchmarks.gpu.step_bytes import element_size, step_bytes
from benchmarks.gpu.step_kernels import NODES, count_kernels, covered
from benchmarks.gpu.table import table
from benchmarks.gpu.task import GpuTask
from benchmarks.latency.peers.loop import choose
from pad_rt import EncodedPrompt, GenerationConfig
from pad_rt.bench.graph_weights import GraphWeights
from pad_rt.bench.steps import Workload
from pad_runtime.loaded_bundle import Bundle
from tests.support import tiny_bundles

SETTINGS = Settings(rounds=1, new_tokens=3, threads=1)
MACHINE = {"gpu": None, "no_device": "no CUDA device", "versions": {}}
QUICK = ["--no-tests", "--rounds", "1", "--new-tokens", "3", "--cpu-prompts", "5", "--cpu-batches", "1", "2"]


def task(
    tmp_path: Path, precision: str, topology: str, *, system: str = OURS, batches: tuple[int, ...] = (2,)
) -> GpuTask:
    group = Group(system, "cpu", "tiny", precision, topology, batches, (5,))
    assert GpuTask.parse(GpuTask(group, SETTINGS, str(tmp_path)).text()).group == group
    return GpuTask(group, SETTINGS, str(tmp_path))


# -- the command ----------------------------------------------------------------------------------------------------


def test_without_a_gpu_every_row_is_there_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_machine", lambda *_: MACHINE)
    out = tmp_path / "results" / "gpu.json"
    only = ["cuda-*", "transformers-cuda-*", "cpu-tiny-fp32-shared"]
    arguments = [*QUICK, "--work", str(tmp_path / "work"), "--out", str(out), "--only", *only]
    assert bench.main(arguments) == 0
    record = json.loads(out.read_text())
    rows = {row["row"]: row for row in record["rows"]}
    expected = [row.name for group in gpu_groups("cuda", [1, 8], [64, 2048]) for row in group.rows]
    assert [*rows] == [*expected, "cpu-tiny-fp32-shared-b1-p5", "cpu-tiny-fp32-shared-b2-p5"]
    assert len(expected) == 12 * 4 + 2
    assert expected[:2] == ["cuda-8b-bf16-shared-b1-p64", "cuda-8b-bf16-shared-b8-p64"]
    assert {row["skipped"] for name, row in rows.items() if name in expected} == {"no device"}
    for name in [*rows][-2:]:
        assert rows[name].keys() >= {"sides", "ratio", "host_us", "copy_gb_s"}
        assert rows[name]["sides"].keys() == {"base", "shared"}
        assert rows[name]["bytes_to_host"] == 8
    text = capsys.readouterr().out
    assert text.endswith(table(record) + "\n")
    assert "- cuda-8b-bf16-shared (b1 p64, b8 p64, b1 p2048, b8 p2048): skipped, no device" in text
    assert "| cpu | tiny | fp32 | shared | 2 | 5 |" in text


def test_with_a_gpu_and_no_time_rows_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_machine", lambda *_: {**MACHINE, "gpu": {"name": "Thing"}})
    out = tmp_path / "gpu.json"
    bench.main([*QUICK, "--budget", "0", "--work", str(tmp_path), "--out", str(out)])
    assert {row["skipped"] for row in json.loads(out.read_text())["rows"]} == {"budget"}


def test_what_fails_takes_its_own_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second row of two, from a process that prints the first and then ends."""
    printed = '{"row": "cpu-tiny-fp32-shared-b1-p5", "sides": {}}'
    (tmp_path / "broken.py").write_text(f"print({printed!r})\nraise MemoryError('too big')")
    monkeypatch.setitem(bench._MODULES, OURS, "broken")
    environment = {"PYTHONPATH": str(tmp_path)}
    run = bench._Run(SETTINGS, tmp_path / "work", environment, time.monotonic() + 60, 60.0, has_gpu=False)
    group = Group(OURS, "cpu", "tiny", "fp32", "shared", (1, 2), (5,))
    first, second = bench._measure(group, run, lambda _: None)
    assert first["sides"] == {}
    assert second["failed"] == "code 1: MemoryError: too big"
    assert (second["group"], second["batch"], second["prompt"]) == ("cpu-tiny-fp32-shared", 2, 5)


def test_a_process_that_does_not_end_is_ended(tmp_path: Path) -> None:
    code = "import time; print('{\"row\": 1}', flush=True); print('{\"ro', flush=True); time.sleep(60)"
    ended = process.run_python(["-c", code], tmp_path, timeout=1.5, environment={})
    assert ended.timed_out
    assert ended.records == [{"row": 1}]


def test_the_tree_is_found_where_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise process.PackageNotFoundError(name)

    monkeypatch.setattr(process, "version", missing)
    paths = process.child_environment(tmp_path)["PYTHONPATH"].split(":")
    assert {str(process.ROOT / name) for name in (".", "runtime", "export")} <= set(paths)
    found = list(Distribution.discover(name="pad-rt", path=[str(tmp_path / "site")]))
    assert len(found) == 1
    assert found[0].version


def test_rows_are_of_what_devices_run() -> None:
    for device in PRECISIONS:
        if device == "cpu":
            continue
        for group in gpu_groups(device, [1], [64]):
            assert group.shape in LLAMA_SHAPES
            if group.system == OURS:
                assert group.precision in PRECISIONS[device]
    assert all(group.precision in PRECISIONS["cpu"] for group in cpu_groups([1], [64]))
    assert export_options("cuda", "int4") == {"precision": "int4", "activations": "fp16"}
    assert export_options("tensorrt", "fp16") == {"precision": "fp16", "target": "tensorrt"}


def test_the_machine_is_described() -> None:
    machine = gpu_machine.describe("cuda")
    assert (machine["gpu"] is None) == bool(machine["no_device"])
    assert machine["versions"]["torch"] == torch.__version__


def test_a_report_of_the_tests_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="off&#10;by one"/></testcase>'
        '<testcase name="c"><skipped message="no capture"/></testcase><testcase name="d"/></testsuite></testsuites>'
    )
    assert read_report(report) == {"passed": 2, "failed": ["b: off"], "skipped": {"no capture": 1}}


# -- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", LLAMA_SHAPES)
def test_shapes_are_those_of_transformers(shape: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_SHAPES[shape]))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert parameter_shapes(write_base(tmp_path / shape, shape)) == expected
    size = {"135m": 0.135e9, "1b": 1.24e9, "8b": 8.03e9}.get(shape)
    if size:
        assert RandomWeights(tmp_path / shape).nbytes == pytest.approx(2 * size, rel=0.01)


@pytest.mark.parametrize(("precision", "topology"), [("fp32", "shared"), ("int4", "pair")])
def test_random_bundles_are_measured_and_decode(precision: str, topology: str, tmp_path: Path) -> None:
    given = task(tmp_path, precision, topology)
    (row,) = gpu_group.measure_group(given)
    assert row["row"] == f"cpu-tiny-{precision}-{topology}-b2-p5"
    for side in ("base", topology):
        assert row["sides"][side]["kernels_from"] == NODES
        assert row["sides"][side]["idle_us"] is None
    assert row["sides"][topology]["bytes"] > row["sides"]["base"]["bytes"]
    generator = tiny_bundles.load(tiny_bundles.set_eos(tmp_path / "bundle", ()))
    config = GenerationConfig(beta=1.0, max_new_tokens=12)
    replies = {
        generator.generate(EncodedPrompt(base=[5, 6, 7], reward=reward), config=config).token_ids
        for reward in ([7, 300, 2], [400, 9], [33], [70, 80, 90, 100], None)
    }
    assert len(replies) > 2, "random weights weigh nothing"


def test_the_peer_is_measured(tmp_path: Path) -> None:
    (row,) = static_cache.measure_peer(task(tmp_path, "fp32", "pair", system=TRANSFORMERS, batches=(1,)))
    assert row["row"] == "transformers-cpu-tiny-fp32-pair-b1-p5"
    assert row["sides"].keys() == {"base", "pair"}
    assert not row["compiled"]


def test_the_peer_mixes_as_the_other_peers_do() -> None:
    generator = torch.Generator().manual_seed(3)
    base, reward = torch.randn(2, 4, 50, generator=generator)
    ours = static_cache._choose([base, reward])[:, 0].tolist()
    pairs = zip(base.numpy(), reward.numpy(), strict=True)
    assert ours == [choose(row, other, top_k=10, beta=1.0) for row, other in pairs]
    assert ours != base.argmax(-1).tolist()


def test_the_peers_cache_says_what_no_cache_says(tmp_path: Path) -> None:
    given = task(tmp_path, "fp32", "pair", system=TRANSFORMERS)
    model = static_cache._Model(given, given.group.rows[0])
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    with torch.no_grad():
        for _ in range(2):  # the second time over what the first left behind
            stepped = model.prefill(ids[:, :2])
            for at in (2, 3):
                stepped = model.step(ids[:, at : at + 1])
            whole = model._model(input_ids=ids).logits[:, -1]
            assert torch.allclose(stepped, whole, atol=1e-5)


# -- figures --------------------------------------------------------------------------------------------------------


def test_bytes_of_a_step(tiny_bundle: Path) -> None:
    """The tiny model has 2 layers of 2 heads of 16 float32 numbers, keys and values: 512 bytes a position and row."""
    bundle = Bundle(tiny_bundle, device="cpu", num_threads=1)
    workload = Workload(prompt_tokens=7, new_tokens=9, rounds=1)  # the reward row reads 32 more; half of 10 are added
    size = element_size(bundle.manifest)
    assert size == 4
    for guided, graph, rows in ((False, "base", 2 * 12), (True, "step", 2 * (12 + 44))):
        plans = [workload.plan(bundle.manifest, guided=guided)] * 2
        weights = GraphWeights.of(tiny_bundle / f"{graph}.onnx").read
        adapter = bundle.manifest.files[str(bundle.manifest.persrms[0].adapter)].size if guided else 0
        bytes_read = step_bytes(tiny_bundle, bundle.manifest, plans, new_tokens=10, graph=graph, element_size=size)
        assert bytes_read == weights + adapter + rows * 512


def test_kernels_at_the_same_time_count_once(tiny_bundle: Path) -> None:
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]) == 4.0
    bundle = Bundle(tiny_bundle, device="cpu", num_threads=1)
    side = Workload(prompt_tokens=3, new_tokens=2).decoding(bundle, guided=False)
    kernels = count_kernels(side, tiny_bundle / "base.onnx", device="cpu")
    assert kernels.source == NODES
    assert kernels.count > 10
    assert kernels.busy_us is None


def test_copy_bandwidth_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_bandwidth, "_CPU_BUFFER", 2**20)
    assert np.isfinite(copy_bandwidth.copy_gb_s("cpu"))


def spread(p50: float) -> dict[str, float]:
    return {"p25": 0.9 * p50, "p50": p50, "p75": 1.1 * p50, "p95": 2 * p50}


def row(**fields: Any) -> dict[str, Any]:
    common = {"row": "r", "group": "g", "system": OURS, "device": "cuda", "shape": "8b", "precision": "bf16"}
    return {**common, "topology": "shared", "batch": 1, "prompt": 64, **fields}


def test_the_table() -> None:
    def side(step_ms: float, **fields: Any) -> dict[str, Any]:
        shown = {"copy_fraction": 0.8449, "kernels": 300.0, "kernels_from": "torch.profiler", "idle_us": 12.4}
        return {"step_ms": spread(step_ms), "prefill_ms": 1.0, **shown, **fields}

    measured = row(
        sides={"base": side(6.0), "shared": side(6.4, copy_fraction=0.81, kernels=420.0, idle_us=None)},
        ratio=spread(1.0667),
        host_us=spread(31.6),
    )
    peer = row(
        system=TRANSFORMERS,
        topology="pair",
        compiled=True,
        sides={"base": {"step_ms": spread(7.0)}, "pair": {"step_ms": spread(16.0)}},
        ratio=spread(2.2857),
    )
    left_out = [row(group="cuda-8b", skipped="no device")]
    left_out += [row(group="cuda-1b", batch=batch, failed="code 1: MemoryError") for batch in (1, 8)]
    tests = {"device": "cuda", "passed": 14, "failed": ["test_x: off"], "skipped": {"no capture": 2}}
    text = table({"correctness": tests, "rows": [measured, peer, *left_out]})
    assert "Tests on cuda: 14 passed, 1 failed\n- failed: test_x: off\n- skipped 2: no capture" in text
    assert (
        "| cuda | 8b | bf16 | shared | 1 | 64 | 6.00 | 6.40 | **1.07** (0.96 to 1.17) | 84%, 81% | 12, - | 32 | "
        "300, 420 |" in text
    )
    assert "| transformers, compiled | 8b | bf16 | 1 | 64 | 7.00 | 16.00 | 2.29 | **2.5x** as fast |" in text  # 16/6.4
    target = "- r: PAD / base {} (at most 1.10), 81% of copy bandwidth (at least 80%): {}\n"
    assert target.format("1.067", "met") in text
    measured["ratio"] = spread(1.1049)
    missed = table({"correctness": tests, "rows": [measured, peer]})
    assert target.format("1.105", "missed") in missed
    assert "- cuda-8b (b1 p64): skipped, no device" in text
    assert "- cuda-1b (b1 p64, b8 p64): failed, code 1: MemoryError" in text

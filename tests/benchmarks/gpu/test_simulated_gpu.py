"""The GPU benchmark on a machine with a GPU, which is simulated: every branch that only such a machine takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.common.records import ROOT
from benchmarks.common.settings import Settings
from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import copy_bandwidth, devices, process, static_cache
from benchmarks.gpu import group as gpu_group
from benchmarks.gpu import machine as gpu_machine
from benchmarks.gpu.correctness import run_tests
from benchmarks.gpu.devices import export_options, why_absent
from benchmarks.gpu.rows import OURS, TRANSFORMERS, Group
from benchmarks.gpu.step_kernels import NODES, PROFILER, count_kernels
from benchmarks.gpu.table import table
from benchmarks.gpu.task import GpuTask
from pad_rt.bench.steps import Workload
from pad_runtime.errors import EngineError
from pad_runtime.loaded_bundle import Bundle
from tests.support import fake_cuda, fake_onnxruntime
from tests.support.fake_cuda import RATE, FakeRuntime

SUPPORT = Path(fake_cuda.__file__).parent
SETTINGS = Settings(rounds=1, new_tokens=3, threads=1)
QUICK = ["--rehearse", "--rounds", "1", "--new-tokens", "3"]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """A GPU of 256 MiB in this process."""
    runtime = fake_cuda.install(monkeypatch, memory=2**28)
    fake_onnxruntime.install(monkeypatch.setattr, runtime)
    return runtime


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in every process that is started from here."""
    paths = [SUPPORT / "simulated_gpu", SUPPORT.parents[1], *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))


def task(folder: Path, precision: str = "fp16", *, batches: tuple[int, ...] = (1, 2), **changes: Any) -> GpuTask:
    fields = {"system": OURS, "device": "cuda", "topology": "shared", **changes}
    group = Group(shape="tiny", precision=precision, batches=batches, prompts=(5,), **fields)
    return GpuTask(group, SETTINGS, str(folder))


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_from_end_to_end(
    machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tests and rows in processes of their own. bfloat16, which the CPU behind the GPU has not, fails in both: all
    else is measured.
    """
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k 'weighs and shared and not int4'")
    out = tmp_path / "results" / "gpu.json"
    only = ["cuda-tiny-fp16-shared", "cuda-tiny-bf16-shared"]
    arguments = [*QUICK, "--work", str(tmp_path / "work"), "--out", str(out), "--only", *only]
    assert bench.main(arguments) == 1
    record = json.loads(out.read_text())
    gpu = {"name": "NVIDIA Thing", "compute_capability": "sm89", "memory": 2**33, "driver": "13.0", "runtime": "12.8"}
    assert record["machine"]["gpu"] == gpu
    assert record["machine"]["no_device"] is None
    tests = record["correctness"]
    assert (tests["device"], tests["passed"]) == ("cuda", 1)
    assert [failed.partition(":")[0] for failed in tests["failed"]] == [
        "test_a_device_weighs_what_the_oracle_weighs[cuda-bf16-shared]"
    ]
    rows = {row["row"]: row for row in record["rows"]}
    assert [*rows] == [
        "cuda-tiny-bf16-shared-b1-p5",
        "cuda-tiny-bf16-shared-b2-p5",
        "cuda-tiny-fp16-shared-b1-p5",
        "cuda-tiny-fp16-shared-b2-p5",
    ]
    for batch in (1, 2):
        assert "ONNX Runtime cannot open" in rows[f"cuda-tiny-bf16-shared-b{batch}-p5"]["failed"]
        measured = rows[f"cuda-tiny-fp16-shared-b{batch}-p5"]
        assert measured["sides"].keys() == {"base", "shared"}
        assert measured["copy_gb_s"] == pytest.approx(2 * RATE / 1e9)
        assert measured["bytes_to_host"] == 8
    text = capsys.readouterr().out
    assert text.endswith(table(record) + "\n")
    assert "| cuda | tiny | fp16 | shared | 2 | 5 |" in text
    assert "   cuda-tiny-bf16-shared-b1-p5: BundleError: ONNX Runtime cannot open" in text
    assert not [*(tmp_path / "work").glob("*/files")], "what takes up the disk is gone"


def test_a_rehearsal_has_every_kind_of_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_machine", lambda *_: {"gpu": {}, "no_device": None})
    out = tmp_path / "gpu.json"
    assert bench.main([*QUICK, "--no-tests", "--budget", "0", "--work", str(tmp_path), "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    kinds = [(row["system"], row["precision"], row["topology"]) for row in rows if row["batch"] == 1]
    assert len(set(kinds)) == len(kinds) == 8
    assert {row["shape"] for row in rows} == {"tiny"}
    everything = bench._groups(bench._parse([]))
    assert {(one.system, one.precision, one.topology) for one in everything if one.device != "cpu"} == set(kinds)


def test_no_device_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_machine", lambda *_: {"gpu": None, "no_device": "cuda-python is not installed"})
    arguments = [*QUICK, "--no-tests", "--work", str(tmp_path), "--out", str(tmp_path / "gpu.json")]
    assert bench.main(arguments) == 0
    assert capsys.readouterr().out.startswith("no cuda: cuda-python is not installed\n")


def test_a_row_is_kept_as_soon_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second row comes only when the first one stands in the record."""
    out = tmp_path / "gpu.json"
    names = ["cuda-tiny-fp16-shared-b1-p5", "cuda-tiny-fp16-shared-b2-p5"]
    (tmp_path / "rows.py").write_text(
        "import json, pathlib, time\n"
        f"out = pathlib.Path({str(out)!r})\n"
        f"print(json.dumps({{'row': {names[0]!r}, 'failed': 'first'}}), flush=True)\n"
        "while 'first' not in out.read_text(): time.sleep(0.05)\n"
        f"print(json.dumps({{'row': {names[1]!r}, 'failed': out.read_text()}}), flush=True)\n"
    )
    monkeypatch.setattr(bench, "_machine", lambda *_: {"gpu": {}, "no_device": None})
    monkeypatch.setitem(bench._MODULES, OURS, "rows")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = [*QUICK, "--no-tests", "--work", str(tmp_path / "work"), "--out", str(out), "--budget", "60"]
    assert bench.main([*arguments, "--only", "cuda-tiny-fp16-shared"]) == 1
    first, second = json.loads(out.read_text())["rows"]
    assert first["failed"] == "first"
    before, waiting = json.loads(second["failed"])["rows"]
    assert before == first
    assert waiting["skipped"] == "the command ended before"


def test_a_command_that_is_ended_keeps_what_it_has(machine: None, tmp_path: Path) -> None:
    """By a polite kill, while a process of its own is at work: that one ends too."""
    out, work = tmp_path / "gpu.json", tmp_path / "work"
    arguments = [*QUICK, "--no-tests", "--work", str(work), "--out", str(out), "--only", "cuda-tiny-fp16-*"]
    environment = process.child_environment(tmp_path)
    command = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
    )
    log = work / "cuda-tiny-fp16-shared" / "log.txt"
    while not log.exists() and command.poll() is None:
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    printed, _ = command.communicate()
    assert command.returncode == 1
    assert {row["skipped"] for row in json.loads(out.read_text())["rows"]} == {"the command ended before"}
    assert b"the command ended before" in printed
    assert not (work / "cuda-tiny-fp16-shared" / "files").exists()


def test_tests_that_do_not_end_or_start_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = process.child_environment(tmp_path)
    assert run_tests("cuda", tmp_path / "one", timeout=0.0, environment=environment) == {
        "device": "cuda",
        "error": "budget",
    }
    (tmp_path / "pytest.py").write_text("raise ImportError('no pytest here')")
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    ended = run_tests("cuda", tmp_path / "two", timeout=60.0, environment=environment)
    assert ended == {"device": "cuda", "error": "code 1: ImportError: no pytest here"}


# -- what is missing ------------------------------------------------------------------------------------------------


def test_a_machine_with_a_gpu_is_described(runtime: FakeRuntime) -> None:
    machine = gpu_machine.describe("cuda")
    assert machine["gpu"]["name"] == "NVIDIA Thing"
    assert machine["no_device"] is None


def test_an_engine_is_built_for_the_gpu_that_is_here(runtime: FakeRuntime) -> None:
    assert export_options("tensorrt-rtx", "fp16") == {
        "precision": "fp16",
        "target": "tensorrt-rtx",
        "compute_capabilities": ["sm89"],
    }


def test_what_is_missing_is_named(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_absent("cuda") is None
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "tensorrt is not installed" in str(why_absent("tensorrt"))
    with monkeypatch.context() as without_cuda_build:
        without_cuda_build.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
        assert "device 'cuda' is not available in this onnxruntime" in str(why_absent("cuda"))
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "cuda-python is not installed" in str(why_absent("cuda"))
    monkeypatch.setattr(devices, "OrtProvider", lambda _: (_ for _ in ()).throw(EngineError("no", hint="no")))
    assert "no" in str(why_absent("cuda"))


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "topology"), [("fp16", "shared"), ("int4", "pair")])
def test_rows_are_measured_on_the_device(precision: str, topology: str, runtime: FakeRuntime, tmp_path: Path) -> None:
    rows = [*gpu_group.measure_group(task(tmp_path, precision, topology=topology))]
    assert [row["row"] for row in rows] == [f"cuda-tiny-{precision}-{topology}-b{batch}-p5" for batch in (1, 2)]
    for row in rows:
        assert row["sides"].keys() == {"base", topology}
        assert row["sides"]["base"]["kernels_from"] == NODES, "torch has no CUDA here"


def test_a_row_without_memory_takes_no_other_with_it(runtime: FakeRuntime, tmp_path: Path) -> None:
    rows = gpu_group.measure_group(task(tmp_path, batches=(1, 2, 3)))
    assert "sides" in next(rows)
    memory, runtime.memory = runtime.memory, runtime.taken
    assert next(rows)["failed"].startswith("OutOfMemoryError: no memory for a buffer of")
    runtime.memory = memory
    assert "sides" in next(rows)


def test_copy_bandwidth_counts_both_ways(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    assert copy_bandwidth.copy_gb_s("cuda") == pytest.approx(2 * RATE / 1e9)
    assert runtime.copied == 11 * 2**26, "a quarter of what is free, and one more to warm up"
    assert not runtime.blocks
    monkeypatch.setattr(runtime, "cudaMemcpyAsync", lambda *_: (700,))
    with pytest.raises(RuntimeError, match="cudaMemcpyAsync: CUDA error 700"):
        copy_bandwidth.copy_gb_s("cuda")


# -- torch on a GPU -------------------------------------------------------------------------------------------------


class FakeProfiler:
    """Two kernels a step, one of them beside a copy, as torch's profiler lists them."""

    def __init__(self, **_: Any) -> None:
        kinds = [("gemm", "CUDA", 0.0, 3.0), ("Memcpy DtoH", "CUDA", 2.0, 4.0), ("mix", "CUDA", 5.0, 6.0)]
        kinds += [("cudaGraphLaunch", "CPU", 0.0, 99.0)]
        self._events = [
            SimpleNamespace(
                name=name,
                device_type=SimpleNamespace(name=device),
                time_range=SimpleNamespace(start=10.0 * step + start, end=10.0 * step + end),
            )
            for step in range(8)
            for name, device, start, end in kinds
        ]

    def __enter__(self) -> FakeProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def events(self) -> list[Any]:
        return self._events


class BlindProfiler(FakeProfiler):
    def events(self) -> list[Any]:
        return []


def test_kernels_are_counted_by_the_profiler(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("torch.profiler.profile", FakeProfiler)
    bundle = Bundle(tiny_bundle, device="cpu", num_threads=1)
    side = Workload(prompt_tokens=3, new_tokens=12).decoding(bundle, guided=False)
    graph = tiny_bundle / "base.onnx"
    seen = count_kernels(side, graph, device="cuda")
    assert (seen.count, seen.source, seen.busy_us) == (2.0, PROFILER, 5.0)
    monkeypatch.setattr("torch.profiler.profile", BlindProfiler)
    assert count_kernels(side, graph, device="cuda").source == NODES


def test_the_peer_is_compiled_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, Any]] = []

    def compile_(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return function

    begun: Iterator[int] = iter(range(1000))
    monkeypatch.setattr(static_cache, "_compiles", lambda _: True)
    monkeypatch.setattr(static_cache, "_begin_step", lambda: next(begun) and None)
    monkeypatch.setattr(torch, "compile", compile_)
    given = task(tmp_path, "fp32", system=TRANSFORMERS, device="cpu", topology="pair", batches=(1,))
    (row,) = static_cache.measure_peer(given)
    assert row["compiled"]
    assert compiled == [{"mode": "reduce-overhead", "fullgraph": True}] * 2
    assert next(begun) == 2 * (4 + 3), "every step of both sides, of warm-up and rounds"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
def test_a_peer_without_a_device_says_so(tmp_path: Path) -> None:
    (row,) = static_cache.measure_peer(task(tmp_path, system=TRANSFORMERS, topology="pair", batches=(1,)))
    assert row["failed"] == "AssertionError: Torch not compiled with CUDA enabled"
    assert torch.get_default_dtype() == torch.float32


def test_a_peer_that_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB\nmore")

    monkeypatch.setattr(static_cache, "_Decoder", fail)
    given = task(tmp_path, "fp32", system=TRANSFORMERS, device="cpu", topology="pair")
    assert [row["failed"] for row in static_cache.measure_peer(given)] == [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 16 GiB"
    ] * 2

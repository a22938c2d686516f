from __future__ import annotations

import dataclasses
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import pytest

from pad_rt.bench.fresh_start import measure_fresh_start
from pad_rt.bench.graph_weights import GraphWeights
from pad_rt.bench.machine import cpu_name, num_cores, peak_rss_mib, private_mib, read_bandwidth
from pad_rt.bench.report import BenchReport
from pad_rt.bench.rounds import Spread, compare, time_turns, turn
from pad_rt.bench.steps import Workload, measure_steps
from pad_rt.cli.main import main
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.errors import PadError
from tests.support.error_checks import edit_manifest, error_line, refused

LINUX = sys.platform == "linux"
SHORT = ["--prompt-tokens", "5", "--new-tokens", "3", "--rounds", "2", "--top-k", "4", "--threads", "1"]


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_rt.bench.machine._BUFFER", 2**20)


@pytest.fixture(scope="module")
def report(tiny_bundle: Path) -> BenchReport:
    workload = Workload(prompt_tokens=5, new_tokens=3, top_k=4, rounds=2)
    return BenchReport.measure(tiny_bundle, workload, num_threads=1)


# -- taking turns ---------------------------------------------------------------------------------------------------


def test_every_side_begins_in_turn() -> None:
    calls: list[str] = []
    ticks = iter(range(100))  # every look at the clock is a second
    sides = {name: lambda name=name: calls.append(name) for name in ("a", "b", "c")}
    times = time_turns(sides, rounds=4, clock=lambda: float(next(ticks)))
    assert calls == [*"abc", *"bca", *"cab", *"abc"]
    assert times == {name: [1.0] * 4 for name in "abc"}
    assert turn("ab", 3) == ["b", "a"]


def test_a_spread() -> None:
    spread = Spread.of([float(value) for value in range(100, -1, -1)])
    assert spread == Spread(24.5, 50.0, 75.5, 95.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 2.0)
    assert compare([2.0, 6.0, 12.0], [1.0, 2.0, 3.0]).p50 == 3.0


class FakeStep:
    """A step that moves a clock by what it costs."""

    def __init__(self, name: str, log: list[str], clock: FakeClock, *, costs: Iterator[float]) -> None:
        self.name, self.log, self.clock, self.costs = name, log, clock, costs

    def prefill(self) -> Sequence[int]:
        self.log.append(f"{self.name} prefill")
        self.clock.now += 1.0
        return [0]

    def step(self) -> Sequence[int]:
        self.log.append(self.name)
        self.clock.now += next(self.costs)
        return [0]


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_steps_take_turns_after_a_warm_up() -> None:
    workload = Workload(prompt_tokens=5, new_tokens=3, top_k=4, rounds=2)
    clock, log = FakeClock(), list[str]()
    costs = {"base": iter([9.0] * 3 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "pad": iter([9.0] * 3 + [10.0] * 6)}
    sides = {name: FakeStep(name, log, clock, costs=cost) for name, cost in costs.items()}
    times = measure_steps(sides, workload, clock=clock)
    one_round = ["base prefill", "pad prefill", "base", "pad", "pad", "base", "base", "pad"]
    assert log == one_round * 3
    assert times.prefill == {"base": [1e3] * 2, "pad": [1e3] * 2}
    assert times.step == {"base": [1e3, 2e3, 3e3, 4e3, 5e3, 6e3], "pad": [1e4] * 6}


@dataclass
class Queue:
    """A device that does what it is given in order, and a clock that only moves when the host waits."""

    now: float = 0.0
    free_at: float = 0.0

    def enqueue(self, cost: float) -> float:
        """When it will be done."""
        self.free_at = max(self.now, self.free_at) + cost
        return self.free_at

    def wait(self, until: float) -> None:
        self.now = max(self.now, until)


class AheadStep:
    """A step whose device is always one further than its caller."""

    def __init__(self, queue: Queue, prefill_s: float, step_s: float) -> None:
        self.queue, self.prefill_s, self.step_s = queue, prefill_s, step_s
        self.running = 0.0

    def prefill(self) -> list[int]:
        done = self.queue.enqueue(self.prefill_s)
        self.running = self.queue.enqueue(self.step_s)
        self.queue.wait(done)
        return []

    def step(self) -> list[int]:
        done, self.running = self.running, self.queue.enqueue(self.step_s)
        self.queue.wait(done)
        return []


def test_a_device_that_runs_ahead_is_timed_in_stretches() -> None:
    workload = Workload(prompt_tokens=5, new_tokens=40, rounds=2)
    queue = Queue()
    sides = {"base": AheadStep(queue, 0.1, 0.004), "pad": AheadStep(queue, 0.2, 0.005)}
    times = measure_steps(sides, workload, settle=lambda: queue.wait(queue.free_at), clock=lambda: queue.now)
    assert times.prefill == {"base": pytest.approx([100] * 2), "pad": pytest.approx([200] * 2)}
    assert times.step == {"base": pytest.approx([4] * 56), "pad": pytest.approx([5] * 56)}  # 2 x 2 x (16 - 2)
    mixed = measure_steps(sides, workload, clock=lambda: queue.now)  # the control
    assert max(mixed.step["base"]) > 8


def test_the_workload_as_rows(tiny_bundle: Path) -> None:
    manifest, workload = read_manifest(tiny_bundle), Workload(prompt_tokens=5, new_tokens=3)
    base, guided = (workload.plan(manifest, guided=guided) for guided in (False, True))
    assert [len(base.prompts[row.prompt]) for row in base.rows] == [5]
    assert [len(guided.prompts[row.prompt]) for row in guided.rows] == [5, 37]
    by_weights = replace(manifest, persrms=[replace(manifest.persrms[0], prompt_template="{x}")])
    shared = Workload(prompt_tokens=5).plan(by_weights, guided=True)
    assert [row.prompt for row in shared.rows] == [0, 0]
    assert [len(prompt) for prompt in shared.prompts] == [5]
    assert workload.prompt(manifest) == workload.prompt(manifest)
    assert max(workload.prompt(manifest).reward or ()) < manifest.vocab_size


# -- the machine ----------------------------------------------------------------------------------------------------


def test_the_machine() -> None:
    assert cpu_name()
    assert 1 <= num_cores() <= 4096
    assert (peak_rss_mib() or 0) > 10
    if LINUX:
        # In a process of its own: here, what other tests left is given back whenever it is collected.
        assert 32 < grown_mib("numpy.ones(64 * 2**20, numpy.uint8)") < 128
        assert abs(grown_mib("None")) < 32  # the control
    assert all((read_bandwidth(threads) or 0) > 0 for threads in (1, 3))


def grown_mib(expression: str) -> float:
    """MiB by which a process of its own grows while it keeps a value."""
    code = f"""
import numpy
from pad_rt.bench.machine import private_mib
before = private_mib()
kept = {expression}
print(private_mib() - before)
"""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_a_machine_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert cpu_name()
    assert (peak_rss_mib() or 0) > 10  # from getrusage
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_rss_mib() is private_mib() is None


def test_weights_of_a_graph_as_the_onnx_package_reads_them(tiny_bundle: Path) -> None:
    for name in ("step.onnx", "base.onnx"):
        model = onnx.load_model(tiny_bundle / name, load_external_data=False)
        sizes = {
            tensor.name: int(entries["length"])
            for tensor in model.graph.initializer
            if "length" in (entries := {entry.key: entry.value for entry in tensor.external_data})
        }
        lookups = ("Gather", "GroupQueryAttention")  # token embeddings, rotary tables
        whole = {name for node in model.graph.node if node.op_type not in lookups for name in node.input}
        weights = GraphWeights.of(tiny_bundle / name)
        assert weights.stored == sum(sizes.values())
        assert weights.read == sum(size for name, size in sizes.items() if name in whole)
        assert 0 < weights.read < weights.stored


def test_tensors_that_share_their_bytes_count_once(tmp_path: Path) -> None:
    tensors = []
    for name, offset in (("table", 0), ("again", 0), ("rows", 64)):
        tensor = onnx.TensorProto(name=name, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", "w"), ("offset", str(offset)), ("length", "64")):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["x"]),
        onnx.helper.make_node("MatMul", ["x", "again"], ["y"]),
        onnx.helper.make_node("Gather", ["rows", "ids"], ["z"], axis=1),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [], initializer=tensors)
    onnx.save_model(onnx.helper.make_model(graph), tmp_path / "g.onnx")
    assert GraphWeights.of(tmp_path / "g.onnx") == GraphWeights(stored=128, read=64)


# -- pad bench ------------------------------------------------------------------------------------------------------


def test_bench_json(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_bundle), *SHORT, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    record = json.loads(out)
    for side in ("base_step_ms", "pad_step_ms"):
        assert 0 < record[side]["p50"] <= record[side]["p95"]
    ratio = record["ratio"]
    assert ratio["of_medians"] == pytest.approx(record["pad_step_ms"]["p50"] / record["base_step_ms"]["p50"], rel=1e-3)
    assert 0 < ratio["p25"] <= ratio["p50"] <= ratio["p75"]
    assert 0 < record["prefill_ms"] < record["first_token_ms"] < record["first_token_from_process_start_ms"]
    assert record["tokens_per_s"] > 0
    assert record["host_us_per_token"] > 0
    assert record["bytes_to_host_per_token"] == 8
    memory = record["memory"]
    assert 0 < memory["net_peak_mib"] < record["peak_rss_mib"]
    assert memory["before_load_mib"] + memory["net_peak_mib"] == pytest.approx(record["peak_rss_mib"], rel=1e-3)
    assert memory["net_peak_to_weights_and_kv"] > 0
    if LINUX:
        assert 0 < memory["private_mib"] < memory["net_peak_mib"]
        assert memory["private_to_weights_and_kv"] < memory["net_peak_to_weights_and_kv"]
    assert record["read_gb_s"]["base_step"] > 0
    assert record["read_gb_s"]["machine"]["1"] > 0
    ran_on = record["ran_on"]
    assert ran_on["prompt"] == "random token ids (EncodedPrompt)"
    expected = {"prompt_tokens": 5, "reward_prompt_tokens": 37, "new_tokens": 3, "rounds": 2, "top_k": 4, "threads": 1}
    expected |= {"device": "cpu", "precision": "fp32", "topology": "shared", "rows": 2}
    assert expected.items() <= ran_on.items()
    assert all(ran_on[name] for name in ("cpu", "cores", "system", "python", "onnxruntime", "pad_rt"))


def test_sizes_of_a_bundle(report: BenchReport, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    trunk, adapter = manifest.trunks[0], manifest.persrms[0].adapter
    assert adapter
    # Keys and values of two rows for 37 tokens of prompt and 4 of reply, in float32.
    assert report.kv_bytes == 2 * 2 * trunk.num_layers * trunk.num_kv_heads * trunk.head_dim * 41 * 4
    assert report.weight_bytes == GraphWeights.of(tiny_bundle / "step.onnx").stored + manifest.files[adapter].size


def test_bench_for_people(report: BenchReport, tiny_bundle: Path) -> None:
    text = report.as_text()
    for words in (
        f"{tiny_bundle}: shared, fp32, 2 rows a step",
        "random token ids, 5 (base) and 37 (reward) of prompt",
        "2 rounds of 3 tokens, k 4",
        "on cpu, 1 thread\n",
        "base step     ",
        "PAD step      ",
        f"{report.ratio:.2f} of medians",
        "tokens/s",
        "in a fresh process on a warm disk",
        "8 bytes a token",
        "MiB peak",
        "MiB its own after a reply" if LINUX else "",
        "GB/s",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 110 + len(str(tiny_bundle))


def test_what_the_system_does_not_tell_is_said(report: BenchReport) -> None:
    fresh = dataclasses.replace(report.fresh, peak_rss_mib=None, before_load_mib=None, private_mib=None)
    blind = dataclasses.replace(report, fresh=fresh, bandwidths={1: None})
    assert "this system does not tell the peak" in blind.as_text()
    assert "NumPy reads not measured with 1 thread" in blind.as_text()
    record = json.loads(json.dumps(blind.as_dict()))
    assert record["peak_rss_mib"] is record["memory"]["net_peak_mib"] is record["memory"]["private_mib"] is None
    assert record["read_gb_s"]["machine"] == {"1": None}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-k", "21"], "--top-k 21; expected 1 to 20 for this bundle"),
        (["--prompt-tokens", "0"], "--prompt-tokens 0; expected 1 to 222 for this bundle"),
        (["--prompt-tokens", "200", "--new-tokens", "30"], "--new-tokens 30; expected 2 to 24 for this bundle"),
        (["--rounds", "0"], "--rounds 0; expected 1 to "),
        (["--threads", "0"], "num_threads 0; expected a whole number, at least 1"),
        (["--device", "tpu"], "device 'tpu'; expected one of "),
    ],
)
def test_a_workload_that_is_refused(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["bench", str(tiny_bundle), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in error_line(err, "pad")


def test_no_bundle_and_no_room(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path)]) == 2
    assert "has no pad.json" in error_line(capsys.readouterr().err, "pad")
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    edit_manifest(bundle, max_length=20)
    assert main(["bench", str(bundle)]) == 2
    assert "expected a bundle with more max_length" in error_line(capsys.readouterr().err, "pad")


def test_what_the_fresh_process_says_is_passed_on(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = read_manifest(bundle)
    data = bytearray((bundle / "step.onnx").read_bytes())
    data[-1] ^= 1
    (bundle / "step.onnx").write_bytes(data)
    with refused(PadError, given=f"{bundle / 'step.onnx'} was altered", hint="this happened in a fresh process"):
        measure_fresh_start(bundle, manifest, Workload(prompt_tokens=5, new_tokens=3))


def test_ctrl_c(tiny_bundle: Path) -> None:
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-c", "import sys; from pad_rt.cli.main import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, "bench", str(tiny_bundle), "--rounds", "10000"], stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    while b"measuring" not in shown:
        shown += os.read(terminal, 1024)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the fresh process gets it too
    assert process.wait(timeout=60) == 130
    shown += os.read(terminal, 65536)
    os.close(terminal)
    assert shown.split() == [b"measuring", b"a", b"fresh", b"process"]

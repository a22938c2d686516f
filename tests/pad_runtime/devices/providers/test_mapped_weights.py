"""Pages of the weights' file: which ones the process holds, as Linux tells it."""

from __future__ import annotations

import errno
import gc
import mmap
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pad_rt.bench.steps import Workload
from pad_runtime.bundle import contract
from pad_runtime.bundle.file_info import describe_file
from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.held_file import BundleFiles
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.bundle.onnx_file import OnnxFile
from pad_runtime.devices.ort.graph import OrtGraph
from pad_runtime.devices.ort.mapped_weights import MappedWeights
from pad_runtime.devices.ort.provider import OrtProvider
from pad_runtime.errors import BundleError, OutOfMemoryError
from pad_runtime.rows.sequence import Sampling
from tests.support import tiny_bundles, tiny_models
from tests.support.error_checks import refused
from tests.support.graph_files import open_graph, read_graph

linux = pytest.mark.skipif(sys.platform != "linux", reason="told by /proc/self/smaps")
WORKLOAD = Workload(prompt_tokens=4, new_tokens=8, top_k=3)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapped")
    tiny_models.make_base(folder / "base", "llama", seed=4, hidden_size=96, intermediate_size=128)
    tiny_models.make_adapter(folder / "adapter", folder / "base", seed=5)
    return tiny_bundles.export(folder / "bundle", folder / "base", [folder / "adapter"], precision="int4")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[MappedWeights]:
    """All that are made, in order."""
    made: list[MappedWeights] = []
    real = MappedWeights.__init__

    def remember(self: MappedWeights, *args: object) -> None:
        real(self, *args)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(MappedWeights, "__init__", remember)
    return made


def areas(weights: MappedWeights) -> list[int]:
    """Bytes in memory for this process of each area that the kernel sees of a mapping."""
    (mapping,) = weights._mappings.values()
    start = np.frombuffer(mapping, np.uint8).ctypes.data
    smaps = Path("/proc/self/smaps").read_text()
    found = re.findall(r"^([0-9a-f]+)-[0-9a-f]+ .*?^Rss: +(\d+) kB", smaps, re.MULTILINE | re.DOTALL)
    return [int(rss) * 1024 for at, rss in found if start <= int(at, 16) < start + len(mapping)]


def resident(weights: MappedWeights) -> int:
    """Bytes of a mapping that are in memory for this process."""
    return sum(areas(weights))


def big_table(folder: Path, *, offset: int, size: int) -> GraphFile:
    """A graph that looks up rows of 64 bytes; byte i of its file is i % 256."""
    tensor = onnx.TensorProto(name="rows", data_type=onnx.TensorProto.UINT8, dims=[size // 64, 64])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    node = onnx.helper.make_node("GatherBlockQuantized", ["rows", "ids"], ["x"])
    graph = onnx.helper.make_graph([node], "g", [], [], initializer=[tensor])
    onnx.save_model(onnx.helper.make_model(graph), folder / "g.onnx")
    (folder / "weights.bin").write_bytes(bytes(range(256)) * ((2 * offset + size) // 256))
    return graph_of(folder, "g.onnx")


def graph_of(folder: Path, file: str) -> GraphFile:
    """A graph and its weights.bin, with no bundle around them."""
    files = BundleFiles(folder, {name: describe_file(folder / name) for name in (file, "weights.bin")})
    content = files[file].read()
    model = OnnxFile.parse(content, folder / file)
    return GraphFile("g", files[file], content, model, (files["weights.bin"],), files)


def touch(weights: MappedWeights) -> int:
    """Read every byte."""
    (mapping,) = weights._mappings.values()
    return int(np.frombuffer(mapping, np.uint8).sum())


def reply(bundle: Path) -> tuple[int, ...]:
    """Ids of a guided reply."""
    generator = tiny_bundles.load(bundle)
    return generator.generate(WORKLOAD.prompt(generator.manifest), config=WORKLOAD.config).token_ids


@linux
def test_pages_are_held_while_they_are_read(quantised: Path) -> None:
    weights = MappedWeights(read_graph(quantised, contract.STEP_GRAPH), onnxruntime)
    assert resident(weights) == 0
    whole = touch(weights)
    assert resident(weights) == -(-(quantised / "weights.bin").stat().st_size // mmap.PAGESIZE) * mmap.PAGESIZE
    weights.let_go()
    assert resident(weights) == 0
    assert touch(weights) == whole


@linux
def test_pages_go_while_a_session_opens(quantised: Path) -> None:
    weights = MappedWeights(read_graph(quantised, contract.STEP_GRAPH), onnxruntime)
    with weights.sweeping():
        touch(weights)
        deadline = time.monotonic() + 60
        while resident(weights) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert resident(weights) == 0
        touch(weights)
    assert resident(weights) == 0
    touch(weights)
    time.sleep(0.1)
    assert resident(weights) > 0, "the sweep has ended"


@linux
def test_a_loaded_bundle_holds_none(quantised: Path, made: list[MappedWeights]) -> None:
    generator = tiny_bundles.load(quantised)
    (weights,) = made
    assert resident(weights) == 0
    plan, decoder = WORKLOAD.plan(generator.manifest, guided=True), generator._bundle.decoder()
    slot = decoder.open(plan.sequence(Sampling(top_k=4)), 64)
    decoder.read(slot, dict(enumerate(plan.prompts)))
    decoder.read(slot, {number: [5] for number in range(len(plan.prompts))})
    assert any(slot.lease.cached)
    assert resident(weights) == 0, "those of the prompt's rows"
    decoder.step([slot])
    assert resident(weights) > 0, "a step looks rows up in it"


@linux
def test_a_row_brings_no_more_than_its_stripe(tmp_path: Path) -> None:
    size, stripe = 2**24, 2**18
    weights = MappedWeights(big_table(tmp_path, offset=2**21 - 2**17, size=size), onnxruntime)
    table = weights.values["rows"].numpy()
    assert len(areas(weights)) >= size // stripe
    for row in (0, 5, 130_000, len(table) - 1):
        weights.let_go()
        assert table[row].tolist() == [(row * 64 + column) % 256 for column in range(64)]
        assert 0 < resident(weights) <= stripe


@linux
def test_a_run_may_outlive_its_graph(
    quantised: Path, made: list[MappedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Callable[[], object]] = []
    bound: list[object] = []  # buffers live as long as the runs on them
    real = OrtGraph.bind

    def bind(graph: OrtGraph, *buffers: Any, repeated: bool, **others: Any) -> Callable[[], object]:
        run = real(graph, *buffers, repeated=repeated, **others)
        runs.extend([run] * repeated)
        bound.extend([buffers] * repeated)
        return run

    monkeypatch.setattr(OrtGraph, "bind", bind)
    bundle = tiny_bundles.open_bundle(quantised)
    decoding = WORKLOAD.decoding(bundle, guided=True)
    decoding.prefill()
    decoding.step()
    weights = weakref.ref(made.pop())
    del bundle, decoding
    gc.collect()
    assert weights(), "or the runs would read what is unmapped"
    for run in runs:
        run()
    runs.clear()
    bound.clear()
    del run
    assert not weights()


@linux
def test_the_sweep_is_on_while_a_session_opens(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    real = onnxruntime.InferenceSession

    def count(*args: object, **options: object) -> object:
        threads.append(threading.active_count())
        return real(*args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", count)
    before = threading.active_count()
    for low_memory in (False, True):
        tiny_bundles.open_bundle(quantised, low_memory=low_memory).graph(contract.STEP_GRAPH)
    assert threads == [before + 1, before]
    assert threading.active_count() == before


@linux
def test_what_is_mapped_is_what_the_file_says(quantised: Path) -> None:
    weights = MappedWeights(read_graph(quantised, contract.STEP_GRAPH), onnxruntime)
    model = onnx.load_model(quantised / "step.onnx")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    ends = {name.rpartition(".")[2] for name in weights.values}
    assert ends == {"rows", "scales", "zero_points"}, "a linear's codes go when they are packed"
    for name, value in weights.values.items():
        np.testing.assert_array_equal(value.numpy(), stored[name])


@linux
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "does not hold base/"), (bytes(1000), "does not hold base/")],
)
def test_weights_that_are_cut(quantised: Path, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "step.onnx").write_bytes((quantised / "step.onnx").read_bytes())
    (tmp_path / "weights.bin").write_bytes(content)
    with refused(BundleError, given=f"{tmp_path / 'weights.bin'} {words}"):
        MappedWeights(graph_of(tmp_path, "step.onnx"), onnxruntime)


@linux
def test_no_room_to_map(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with refused(OutOfMemoryError, given=f"no memory for {quantised / 'step.onnx'}", hint="smaller model"):
        tiny_bundles.load(quantised)


def test_the_same_tokens_where_pages_cannot_go(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = reply(quantised)
    monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    assert MappedWeights.of(read_graph(quantised, contract.STEP_GRAPH), onnxruntime) is None
    assert reply(quantised) == expected


def test_weights_that_are_used_in_place_stay(quantised: Path, made: list[MappedWeights]) -> None:
    tiny_bundles.open_bundle(quantised, low_memory=True).graph(contract.STEP_GRAPH)
    assert not made
    manifest = read_manifest(quantised)
    open_graph(OrtProvider("cpu", manifest=manifest, num_threads=1), quantised, contract.BASE_GRAPH)
    assert len(made) == 1

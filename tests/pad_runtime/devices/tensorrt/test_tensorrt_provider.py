"""Engines behind the same step and the same loop, on a TensorRT and a device that are simulated."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_rt import GenerationConfig, Generator, Preference
from pad_rt.cli.main import main
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.devices.choice import find_provider, survey
from pad_runtime.errors import BundleError, DeviceError, EngineError, OutOfMemoryError
from pad_runtime.loaded_bundle import Bundle
from tests.support import fake_cuda, fake_tensorrt, tiny_bundles, tiny_models
from tests.support.error_checks import edit_manifest, refused
from tests.support.fake_cuda import FakeRuntime
from tests.support.family_requests import BOTH, PROMPTS

CONFIG = GenerationConfig(beta=8.0, top_k=6, max_new_tokens=16)
ONE = Preference(weights={"one": -1.0})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_family(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["shared", "pair"])
def bundle(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    persrms = [models / "one", models / "two"] if request.param == "shared" else [models / "one"]
    options = {"topology": request.param, "dialect": "standard", "max_length": 64, "max_batch": 3, "max_top_k": 8}
    folder = tmp_path_factory.mktemp(request.param)
    return fake_tensorrt.add_engines(tiny_bundles.export(folder / "bundle", models / "base", persrms, **options))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def trt(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = fake_tensorrt.make_module(runtime)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def preference(bundle: Path) -> Preference:
    return BOTH if len(read_manifest(bundle).persrms) == 2 else Preference(weights={"one": 16.0})


def reply(generator: Generator, wanted: Preference | None, **changes: Any) -> list[tuple[int, ...]]:
    config = replace(CONFIG, **changes)
    results = generator.generate_batch(PROMPTS, preferences=[wanted] * 2, config=config)
    return [result.token_ids for result in results]


def test_engines_say_what_onnx_runtime_says(bundle: Path, trt: Any, runtime: FakeRuntime) -> None:
    plain, engines = tiny_bundles.load(bundle), Generator.load(bundle, device="tensorrt")
    wanted = preference(bundle)
    expected = reply(plain, wanted)
    runtime.calls.clear()
    assert reply(engines, wanted) == expected
    assert reply(engines, wanted, temperature=0.8, seed=3) == reply(plain, wanted, temperature=0.8, seed=3)
    assert reply(engines, wanted, top_k=3) == reply(plain, wanted, top_k=3) != expected
    assert reply(engines, None) == reply(plain, None) != expected
    one, other = (
        each.generate(PROMPTS[0], preference=wanted, config=CONFIG, trace=True).trace for each in (engines, plain)
    )
    for mine, theirs in zip(one, other, strict=True):
        assert mine.candidates.tolist() == theirs.candidates.tolist()
        assert mine.row_logits == pytest.approx(theirs.row_logits, abs=1e-5)


def test_a_step_is_captured_once_a_binding_and_replayed(bundle: Path, trt: Any, runtime: FakeRuntime) -> None:
    generator = Generator.load(bundle, device="tensorrt", keep_mib=0)
    reply(generator, preference(bundle))
    (engine,) = trt.engines
    steps = CONFIG.max_new_tokens
    assert engine.enqueued == 2 + 2 + 2, "the prompts; each binding once as it is and once for its capture"
    assert runtime.launched == steps + 1 - 2, "one step is ahead of what was asked for"
    contexts = len(engine.contexts)
    runtime.calls.clear()
    reply(generator, preference(bundle))
    assert runtime.launched == 2 * (steps + 1) - 2
    assert len(engine.contexts) == contexts + 2, "only the prompts' are new"
    assert runtime.calls[-2 * steps - 1 : -1] == ["copy", "wait"] * steps, "one small copy a token and nothing else"


def test_without_capture_steps_are_enqueued(bundle: Path, trt: Any, runtime: FakeRuntime) -> None:
    step = Bundle(bundle, device="tensorrt", capture=False)
    assert step.provider.freezes_host_inputs
    generator = Generator(step)
    assert reply(generator, preference(bundle)) == reply(tiny_bundles.load(bundle), preference(bundle))
    assert not runtime.launched
    assert trt.engines[0].enqueued == 2 + CONFIG.max_new_tokens + 1, "prompts, steps, and one step ahead"


def test_an_engine_that_cannot_be_captured_runs_as_it_is(
    bundle: Path, trt: Any, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stream: int) -> tuple[int, None]:
        runtime._recording = None
        return 900, None

    monkeypatch.setattr(runtime, "cudaStreamEndCapture", refuse)
    generator = Generator.load(bundle, device="tensorrt")
    with pytest.warns(RuntimeWarning, match="steps run without a CUDA graph: CUDA cannot be used"):
        mine = reply(generator, preference(bundle))
    assert mine == reply(tiny_bundles.load(bundle), preference(bundle))


def test_tensorrt_rtx_captures_by_itself_and_keeps_its_kernels(
    bundle: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = fake_tensorrt.make_module(runtime, "tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    manifest = (bundle / "pad.json").read_text()
    try:
        fake_tensorrt.add_engines(bundle, "tensorrt-rtx")
        generator = Generator.load(bundle)
        assert generator._bundle.provider.device == "tensorrt-rtx", "auto prefers engines"
        assert not generator._bundle.notes
        generator.generate(PROMPTS[0], preference=preference(bundle), config=CONFIG)
        assert not (tmp_path / "pad-rt").exists()
        assert reply(generator, preference(bundle)) == reply(tiny_bundles.load(bundle), preference(bundle))
        assert (tmp_path / "pad-rt" / "tensorrt-rtx").exists(), "after the first reply, for the process may be killed"
        del generator
        module.engines[1:] = []
        gc.collect()
        (kept,) = (tmp_path / "pad-rt" / "tensorrt-rtx").iterdir()
        assert kept.read_bytes() == b"k" * len(module.engines[0].contexts)
        Generator.load(bundle).generate(PROMPTS[0], preference=preference(bundle), config=CONFIG)
        assert len(module.engines[1].contexts[0].config.cache.kernels) > len(module.engines[1].contexts)
    finally:
        (bundle / "pad.json").write_text(manifest)
    assert not runtime.launched
    strategies = [context.config.cuda_graph_strategy.name for context in module.engines[0].contexts]
    assert sorted(strategies) == ["DISABLED"] * 3 + ["WHOLE_GRAPH_CAPTURE"] * 4, "prompts, and two bindings a batch"


def test_another_persrm_needs_no_other_engine(bundle: Path, trt: Any) -> None:
    generator, plain = Generator.load(bundle, device="tensorrt"), tiny_bundles.load(bundle)
    for wanted in (preference(bundle), ONE, preference(bundle)):
        assert reply(generator, wanted) == reply(plain, wanted)
    assert len(trt.engines) == 1


def test_calls_that_overlap_do_not_mix(bundle: Path, trt: Any) -> None:
    generator, plain = Generator.load(bundle, device="tensorrt"), tiny_bundles.load(bundle)
    wanted = [preference(bundle), ONE, None, ONE]
    expected = [reply(plain, each) for each in wanted]
    got: list[Any] = [None] * len(wanted)

    def call(index: int) -> None:
        got[index] = reply(generator, wanted[index])

    threads = [threading.Thread(target=call, args=[index]) for index in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_two_generators_in_one_process(bundle: Path, trt: Any) -> None:
    one, other = (Generator.load(bundle, device="tensorrt") for _ in range(2))
    wanted = preference(bundle)
    assert reply(one, wanted) == reply(other, wanted) == reply(one, wanted)
    assert reply(one, None) == reply(other, None)


def test_memory_is_given_back(bundle: Path, trt: Any, runtime: FakeRuntime) -> None:
    generator = Generator.load(bundle, device="tensorrt")
    reply(generator, preference(bundle))
    assert runtime.taken > 2**16
    assert runtime.captured == 2
    trt.engines.clear()
    del generator
    gc.collect()
    assert runtime.taken == 0
    assert runtime.captured == 0


def test_no_memory_for_the_cache(bundle: Path, trt: Any, runtime: FakeRuntime) -> None:
    generator = Generator.load(bundle, device="tensorrt")
    runtime.memory = runtime.taken + 2**12
    with refused(OutOfMemoryError, given="no memory for a buffer of", hint="shorter prompts"):
        reply(generator, preference(bundle))
    runtime.memory = 2**40
    assert reply(generator, preference(bundle)) == reply(tiny_bundles.load(bundle), preference(bundle))


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_a_shape_outside_of_the_profile(copied: Path, trt: Any) -> None:
    """A bundle whose limits were raised behind its engines' back."""
    edit_manifest(copied, max_top_k=16)
    generator = Generator.load(copied, device="tensorrt")
    with refused(EngineError, given="k of noise is 12, outside of [1, 8]", expected="its prefill profile"):
        reply(generator, preference(copied), top_k=12)


def test_an_engine_that_does_not_load(copied: Path, trt: Any) -> None:
    (copied / "step.tensorrt.engine").write_bytes(b"nonsense")
    edit_manifest(copied, rehash=True)
    with refused(EngineError, given="cannot load", hint="pad-export engines"):
        Generator.load(copied, device="tensorrt")


def test_an_engine_is_the_one_that_was_loaded(copied: Path, trt: Any) -> None:
    """The base's engine is opened at first use: one that took its place is not, and one that was written to neither."""
    engine = copied / "base.tensorrt.engine"
    expected = Generator.load(copied, device="tensorrt").generate("hi", config=CONFIG)
    generator, other = (Generator.load(copied, device="tensorrt") for _ in range(2))
    kept = copied / "kept"
    engine.rename(kept)
    engine.write_bytes(b"nonsense")
    assert generator.generate("hi", config=CONFIG).token_ids == expected.token_ids
    kept.write_bytes(b"nonsense")
    with refused(BundleError, given=f"{engine} was changed after it was loaded", hint="load the bundle again"):
        other.generate("hi", config=CONFIG)


def test_an_engine_for_another_gpu(copied: Path, trt: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engines = [{**engine.__dict__, "compute_capabilities": ["sm120"]} for engine in read_manifest(copied).engines]
    edit_manifest(copied, engines=engines)
    with refused(EngineError, given="only step.tensorrt.engine for tensorrt", hint="run: pad-export engines"):
        Generator.load(copied, device="tensorrt")
    with pytest.warns(RuntimeWarning, match="not on tensorrt: .* has no engine of its step graph"):
        assert Generator.load(copied)._bundle.provider.device == "cpu"
    assert main(["generate", str(copied), "hi", "--device", "tensorrt"]) == 2
    assert "pad-export engines" in capsys.readouterr().err


def test_a_bundle_of_the_other_dialect(models: Path, tmp_path: Path, trt: Any) -> None:
    bundle = tiny_bundles.export(tmp_path / "bundle", models / "base", [models / "one"])
    with refused(EngineError, given="ort dialect", hint="--target tensorrt"):
        Generator.load(bundle, device="tensorrt")


def test_a_run_that_fails(bundle: Path, trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator.load(bundle, device="tensorrt")
    monkeypatch.setattr(fake_tensorrt.Context, "execute_async_v3", lambda self, stream: False)
    with refused(DeviceError, given="failed while it decoded", hint="start the process again"):
        reply(generator, preference(bundle))


@pytest.mark.parametrize(
    ("method", "answer", "given", "hint"),
    [
        ("set_optimization_profile_async", False, "cannot start step.tensorrt.engine", "free GPU memory"),
        ("set_tensor_address", False, "refuses the buffer of", "build the engine again"),
        ("infer_shapes", [contract.INPUT_IDS], f"{contract.INPUT_IDS} of shape [", "larger limits"),
        ("infer_shapes", RuntimeError("they differ"), "shapes for step.tensorrt.engine", "build the engine again"),
    ],
)
def test_what_a_context_refuses(
    bundle: Path, trt: Any, monkeypatch: pytest.MonkeyPatch, method: str, answer: object, given: str, hint: str
) -> None:
    def refuse(self: object, *_: object, **__: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    generator = Generator.load(bundle, device="tensorrt")
    monkeypatch.setattr(fake_tensorrt.Context, method, refuse)
    with refused(EngineError, given=given, hint=hint):
        reply(generator, preference(bundle))


def test_the_survey_names_each_device_and_why_not(bundle: Path, trt: Any) -> None:
    findings = {finding.device: finding for finding in survey(bundle, read_manifest(bundle))}
    assert findings["tensorrt"].usable
    assert findings["tensorrt"].detail == f"tensorrt {fake_tensorrt.VERSION}"
    assert findings["cpu"].usable
    assert not findings["cuda"].usable
    assert "not available in this onnxruntime" in findings["cuda"].detail
    assert not findings["tensorrt-rtx"].usable


def test_auto_takes_the_cpu_where_there_is_no_gpu(
    bundle: Path, trt: Any, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "devices", 0)
    provider, notes = find_provider("auto", bundle, read_manifest(bundle))
    assert provider.device == "cpu"
    assert [note.partition(":")[0] for note in notes] == ["not on tensorrt"]


def test_a_tensor_that_begins_anywhere_is_refused(bundle: Path, trt: Any) -> None:
    opened = Bundle(bundle, device="tensorrt")
    numbers = opened.provider.memory.zeros((2, 1), np.int64)
    graph = opened.graph(contract.STEP_GRAPH)
    with refused(EngineError, given="refuses the buffer of input_ids: the address must be aligned to 256 bytes"):
        graph.bind({contract.INPUT_IDS: numbers.window(1, 1)}, {}, repeated=True)


# -- the simulation itself ------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx")
def test_what_is_simulated_is_what_there_is() -> None:
    """Every name that the simulation offers, and so all that the provider can use, exists in the library."""
    import tensorrt_rtx as real

    module = fake_tensorrt.make_module(FakeRuntime(), "tensorrt-rtx")
    pairs = [
        (fake_tensorrt.Context, real.IExecutionContext),
        (fake_tensorrt.RuntimeConfig, real.IRuntimeConfig),
        (fake_tensorrt.RuntimeCache, real.IRuntimeCache),
        (module.Runtime, real.Runtime),
    ]
    for fake, other in pairs:
        assert {name for name in vars(fake) if not name.startswith("_")} <= {*dir(other), "config", "allocation"}
    own = {"contexts", "enqueued", "at", "keep", "run"}
    assert {name for name in vars(fake_tensorrt.Engine) if not name.startswith("_")} - own <= {*dir(real.ICudaEngine)}
    for name in ("TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy", "CudaGraphStrategy"):
        assert set(getattr(module, name).__members__) <= set(getattr(real, name).__members__)
    assert {"FLOAT", "HALF", "BF16", "INT32", "INT64"} <= set(real.DataType.__members__)


def test_the_simulation_notices_memory_that_was_given_back(
    bundle: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: an arena that is made anew, and runs on the old one that are not let go of."""
    generator = Generator.load(bundle, device="tensorrt")
    monkeypatch.setattr(generator._engine._decoder._arena, "_before_resize", lambda: None)
    wanted = preference(bundle)
    reply(generator, wanted)
    generator.generate_batch([*PROMPTS, PROMPTS[0]], preferences=[wanted] * 3, config=CONFIG)
    gc.collect()
    with pytest.raises(AssertionError, match=r"past_key_values\.0\.key is not on the device"):
        reply(generator, wanted)

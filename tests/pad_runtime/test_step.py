"""The step: what it chooses (NumPy oracles), what it keeps, and that after prefill it only runs the graph."""

from __future__ import annotations

import collections
import ctypes
import math
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as ort_python

import tiny_bundles
import tiny_models
from pad_rt import EncodedPrompt, GenerationConfig, Generator
from pad_runtime import buffers, contract, ids
from pad_runtime import step as step_module
from pad_runtime.step import GraphStep, StepRequest
from torch_oracle import Reward, TorchModel, decode, tolerance

PROMPTS = (((5, 17, 300, 41, 8), (9, 8, 7, 6, 5, 4, 200)), ((20, 21, 22), (250,)), ((3,), (4, 99, 98, 97)))
NUM_STEPS = 50
KINDS: dict[str, dict[str, Any]] = {
    "shared": {"topology": "shared"},
    "pair": {"topology": "pair"},
    "standard": {"topology": "shared", "dialect": "standard"},
}


@dataclass(frozen=True)
class Models:
    folder: Path
    base: TorchModel
    persrm: TorchModel

    def bundle(self, kind: str) -> Path:
        return self.folder / kind


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A llama with one adapter, as bundles of both topologies, and torch's reading of it."""
    folder = tmp_path_factory.mktemp("step")
    tiny_models.make_base(folder / "base", "llama", seed=5)
    tiny_models.make_adapter(folder / "cheerful", folder / "base", seed=6)
    for kind, options in KINDS.items():
        tiny_bundles.export(folder / kind, folder / "base", [folder / "cheerful"], max_top_k=1000, **options)
    return Models(folder, TorchModel(folder / "base"), TorchModel(folder / "base", adapter=folder / "cheerful"))


@pytest.fixture(scope="module", params=KINDS)
def generator(models: Models, request: pytest.FixtureRequest) -> Generator:
    return tiny_bundles.load(models.bundle(request.param))


def make_request(
    generator: Generator,
    *sequences: int,
    preference: Any = "x",
    trace: bool = False,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]] = PROMPTS,
    **config: Any,
) -> StepRequest:
    """What the generator would ask of the step."""
    prepared = generator._prepare(
        [EncodedPrompt(*prompts[index]) for index in sequences],
        [preference] * len(sequences),
        GenerationConfig(**{"max_new_tokens": NUM_STEPS + 1, **config}),
        trace=trace,
    )
    return prepared.request


def new_step(generator: Generator) -> GraphStep:
    return generator._bundle.guided_step()


def run(step: GraphStep, request: StepRequest, num_tokens: int = NUM_STEPS) -> list[list[int]]:
    """Ids by sequence."""
    ids = [list(step.prefill(request))]
    ids += [list(step.step()) for _ in range(num_tokens - 1)]
    return [list(sequence) for sequence in zip(*ids, strict=True)]


# -- what DESIGN section 2 asks of every implementation -----------------------------------------------------------


@pytest.mark.parametrize("config", [{"beta": 0.0}, {"top_k": 1, "beta": 3.0}])
def test_without_weight_or_choice_it_is_base_greedy(
    generator: Generator, models: Models, config: dict[str, Any]
) -> None:
    ids = run(new_step(generator), make_request(generator, 0, 1, 2, **config))
    alone = generator._bundle.base_step()
    assert run(alone, make_request(generator, 0, 1, 2, preference=None)) == ids
    for (prompt, _), found in zip(PROMPTS, ids, strict=True):
        greedy = decode(models.base, prompt, [], beta=1.0, top_k=1, num_tokens=NUM_STEPS)
        assert found == greedy.token_ids
    assert ids != run(new_step(generator), make_request(generator, 0, 1, 2, beta=1.0))


def test_beta_one_over_the_whole_vocabulary_is_persrm_greedy(generator: Generator, models: Models) -> None:
    vocab_size = generator.manifest.vocab_size
    ids = run(new_step(generator), make_request(generator, 0, 1, 2, top_k=vocab_size, beta=1.0))
    for (_, prompt), found in zip(PROMPTS, ids, strict=True):
        assert found == decode(models.persrm, prompt, [], beta=1.0, top_k=1, num_tokens=NUM_STEPS).token_ids
    fewer = run(new_step(generator), make_request(generator, 0, 1, 2, top_k=3, beta=1.0))
    assert fewer != ids


def test_cached_is_uncached(generator: Generator) -> None:
    """Every step against a fresh prefill of the prompt and all ids so far."""
    step, fresh = new_step(generator), new_step(generator)
    request = make_request(generator, 0, 1, 2, trace=True)
    found = [list(step.prefill(request))]
    ids: list[list[int]] = [[] for _ in PROMPTS]
    for _ in range(12):
        for sequence, token in zip(ids, found[-1], strict=True):
            sequence.append(token)
        grown = [((*base, *new), (*reward, *new)) for (base, reward), new in zip(PROMPTS, ids, strict=True)]
        expected = list(fresh.prefill(make_request(generator, 0, 1, 2, trace=True, prompts=grown)))
        assert expected == list(step.step())
        found.append(expected)
        assert traces_differ(step, fresh) < tolerance()
    # Control: the same without the newest token.
    short = [(base[:-1], reward[:-1]) for base, reward in grown]
    fresh.prefill(make_request(generator, 0, 1, 2, trace=True, prompts=short))
    assert traces_differ(step, fresh) > 10 * tolerance()


def traces_differ(one: GraphStep, other: GraphStep) -> float:
    a, b = one.trace(), other.trace()
    if not np.array_equal(a.candidates, b.candidates):
        return math.inf
    return float(np.abs(a.row_logits - b.row_logits).max() / max(1.0, np.abs(b.row_logits).max()))


def test_a_row_of_a_batch_is_the_row_alone(generator: Generator) -> None:
    batch, request = new_step(generator), make_request(generator, 0, 1, 2, trace=True)
    alone = [new_step(generator) for _ in PROMPTS]
    requests = [make_request(generator, index, trace=True) for index in range(3)]
    for turn in range(NUM_STEPS):
        ids = list(batch.prefill(request) if turn == 0 else batch.step())
        for index, step in enumerate(alone):
            (single,) = step.prefill(requests[index]) if turn == 0 else step.step()
            assert ids[index] == single
            a, b = batch.trace(), step.trace()
            np.testing.assert_array_equal(a.candidates[index], b.candidates[0])
            np.testing.assert_allclose(a.row_logits[index], b.row_logits[0], atol=10 * tolerance())
            other = a.row_logits[(index + 1) % 3]
            assert np.abs(other - b.row_logits[0]).max() > 0.1  # control: another sequence's row


def test_shared_is_pair_on_the_same_weights(models: Models) -> None:
    shared, pair = (tiny_bundles.load(models.bundle(topology)) for topology in ("shared", "pair"))
    one, other = new_step(shared), new_step(pair)
    requests = make_request(shared, 0, 1, 2, trace=True), make_request(pair, 0, 1, 2, trace=True)
    assert list(one.prefill(requests[0])) == list(other.prefill(requests[1]))
    for _ in range(NUM_STEPS):
        assert traces_differ(one, other) < tolerance()
        assert list(one.step()) == list(other.step())
    unguided = new_step(pair)
    assert run(unguided, make_request(pair, 0, 1, 2, beta=0.0)) != run(one, requests[0])  # control


def test_the_log_ratio_form_is_the_blended_form(models: Models) -> None:
    """z + beta (log pi_persrm - log pi_base) against (1 - beta) z_base + beta z_persrm, from torch's own logits."""
    shared = tiny_bundles.load(models.bundle("shared"))
    for beta in (0.5, 1.0, -0.75, 2.5):
        step, request = new_step(shared), make_request(shared, 0, trace=True, beta=beta)
        step.prefill(request)
        prompt, reward_prompt = PROMPTS[0]
        log_ratio = decode(
            models.base, prompt, [Reward(models.persrm, reward_prompt)], beta=beta, top_k=10, num_tokens=1
        )
        trace = step.trace()
        base, persrm = (row.numpy() for row in log_ratio.row_logits[0])
        blended = (1 - beta) * base + beta * persrm
        np.testing.assert_array_equal(trace.candidates[0], log_ratio.candidates[0])
        np.testing.assert_allclose(trace.scores[0], blended, atol=10 * tolerance())
        shifted = log_ratio.scores[0].numpy() - blended
        np.testing.assert_allclose(shifted, shifted[0], atol=10 * tolerance())  # a constant, and nothing else
        assert np.abs(trace.scores[0] - (base + beta * persrm)).max() > 0.1  # control: the base counted twice


# -- the choice -----------------------------------------------------------------------------------------------------


def gumbel(seed: int, steps: int, k: int) -> np.ndarray:
    """The documented noise: standard Gumbel from Philox of the sequence's seed, [steps, k]."""
    return np.random.Generator(np.random.Philox(seed)).gumbel(size=(steps, k)).astype(np.float32)


def nucleus(scores: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Indices kept, best first: the smallest set of candidates whose mass reaches top_p."""
    order = np.argsort(-scores, kind="stable")
    logits = scores[order].astype(np.float64) / temperature
    chances = np.exp(logits - logits.max())
    mass = np.cumsum(chances / chances.sum())
    return order[: int(np.searchsorted(mass, top_p)) + 1]


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.7, 1.0), (2.0, 0.9), (5.0, 0.6), (1.0, 0.3), (1.5, 0.99), (4.0, 1e-6)]
)
def test_sampling_is_gumbel_argmax_inside_the_nucleus(generator: Generator, temperature: float, top_p: float) -> None:
    """Every step of a batch recomputed in NumPy from the trace; and the control, the next seed's noise."""
    k, seed = 8, 40
    options = {"top_k": k, "temperature": temperature, "top_p": top_p, "seed": seed}
    request = make_request(generator, 0, 1, 2, trace=True, **options)
    step = new_step(generator)
    noise = [gumbel(seed + index, NUM_STEPS + 1, k) for index in range(4)]
    cut = wrong = 0
    for turn in range(NUM_STEPS):
        ids = step.prefill(request) if turn == 0 else step.step()
        trace = step.trace()
        for index in range(3):
            scores = trace.scores[index]
            kept = nucleus(scores, temperature, top_p)
            cut += k - len(kept)
            ranked = np.sort(scores)[::-1]
            chosen = [
                int(trace.candidates[index][kept[np.argmax(scores[kept] / temperature + draw[turn][: len(kept)])]])
                for draw in (noise[index], noise[index + 1])
            ]
            assert np.all(np.diff(ranked) <= 0)
            assert ids[index] == chosen[0]
            wrong += ids[index] != chosen[1]
    assert (cut > 0) is (top_p < 1.0)
    assert (wrong > 0) is (top_p > 1e-3)


def test_temperature_zero_is_greedy_whatever_the_seed_and_top_p(generator: Generator) -> None:
    greedy = run(new_step(generator), make_request(generator, 0, 1))
    assert greedy == run(new_step(generator), make_request(generator, 0, 1, temperature=0.0, seed=7, top_p=0.4))
    assert greedy == run(new_step(generator), make_request(generator, 0, 1, temperature=3.0, seed=7, top_p=1e-9))
    assert greedy != run(new_step(generator), make_request(generator, 0, 1, temperature=3.0, seed=7))


# -- buffers --------------------------------------------------------------------------------------------------------


def test_requests_of_any_size_leave_nothing_behind(generator: Generator) -> None:
    """One step through requests that grow, shrink and change in every way, each against a step of its own."""
    used = new_step(generator)
    long = [(tuple(range(1, 150)), tuple(range(100, 210))), *PROMPTS[1:]]
    requests = [
        make_request(generator, 0),
        make_request(generator, 0, 1, 2),
        make_request(generator, 0, 1, 2, prompts=long, trace=True),
        make_request(generator, 2, trace=True, top_k=3),
        make_request(generator, 2, 1, temperature=2.0, seed=3),
        make_request(generator, 2, 1, temperature=2.0, seed=3, max_new_tokens=200),
        make_request(generator, 1, 2, beta=-0.5, top_k=5),
        make_request(generator, 1, preference=[("x", 1.0), ("y", 0.5)]),
        make_request(generator, 1),
        make_request(generator, 2),
        make_request(generator, 0),
    ]
    for request in requests:
        assert run(used, request, 20) == run(new_step(generator), request, 20)


def test_a_request_that_fits_takes_no_new_buffer(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """KV cache, state and bindings serve the next request of like size; only a larger one takes new ones."""
    step = new_step(generator)
    run(step, make_request(generator, 0, 1), 3)
    before = addresses(step)
    run(step, make_request(generator, 2, 1, beta=0.3), 3)
    assert addresses(step) == before
    run(step, make_request(generator, 2, 1, 0), 3)
    assert addresses(step) != before


def test_running_past_the_cache_is_clamped(generator: Generator) -> None:
    """A sequence that has ended runs on beside others: its length stops at the last slot of the cache."""
    step = new_step(generator)
    capacity = 256
    request = make_request(generator, 0, max_new_tokens=capacity - len(PROMPTS[0][1]))
    run(step, request, capacity + 20)
    (_, _, at) = step._trunks[0]
    for turn in step._turns:
        assert turn[at + contract.SEQLENS_K].read().max() <= capacity - 1
    assert run(step, request, 20) == run(new_step(generator), request, 20)


# -- the per-token path ---------------------------------------------------------------------------------------------


def addresses(step: GraphStep) -> dict[str, int]:
    """Where every value that is bound lies."""
    found = {name: value.address for name, value in step._values.items()}
    for turn, values in enumerate(step._turns):
        found |= {f"{turn}:{name}": value.address for name, value in values.items()}
    return found | {"next_ids": step._ids.buffer.address, "view": ctypes.addressof(step._take())}


@dataclass
class Watched:
    """What happened while steps ran."""

    calls: collections.Counter[str] = field(default_factory=collections.Counter)  # C and Python functions
    forbidden: list[str] = field(default_factory=list)  # ONNX Runtime calls that make or bind buffers
    held: list[str] = field(default_factory=list)  # attributes of the step that hold arrays
    peak: int = 0  # most bytes that one step held for a moment, NumPy's memory included
    growth: int = 0  # bytes still held after all steps


_MAKING = {
    buffers.HostBuffer: ("__init__", "write", "read"),
    ort_python.OrtValue: ("__init__", "ortvalue_from_numpy", "ortvalue_from_shape_and_type", "update_inplace", "numpy"),
    ort_python.IOBinding: (
        "__init__",
        "bind_cpu_input",
        "bind_input",
        "bind_ortvalue_input",
        "bind_output",
        "bind_ortvalue_output",
        "clear_binding_inputs",
        "clear_binding_outputs",
        "copy_outputs_to_cpu",
        "get_outputs",
    ),
    ort_python.Session: ("io_binding", "run", "run_with_ort_values"),
}


@contextmanager
def no_buffers_made(watched: Watched) -> Iterator[None]:
    """Note every call that makes, binds or reads a buffer."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in _MAKING.items():
            for name in names:
                real = owner.__dict__[name]
                function = real.__func__ if isinstance(real, staticmethod | classmethod) else real

                def noting(*args: Any, _function: Callable[..., Any] = function, **kwargs: Any) -> Any:
                    watched.forbidden.append(_function.__name__)
                    return _function(*args, **kwargs)

                patch.setattr(owner, name, type(real)(noting) if function is not real else noting)
        yield


def count_calls(step: Callable[[], Any], count: int) -> collections.Counter[str]:
    """Every function called, by module and name: Python's and C's."""
    calls: collections.Counter[str] = collections.Counter()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            module = getattr(argument, "__module__", None) or type(getattr(argument, "__self__", None)).__module__
            calls[f"{module}:{argument.__name__}"] += 1
        elif event == "call":
            calls[f"{frame.f_globals.get('__name__')}:{frame.f_code.co_name}"] += 1

    turns = range(count)
    sys.setprofile(profile)
    for _ in turns:
        step()
    sys.setprofile(None)
    del calls["sys:setprofile"]
    return calls


def held_arrays(step: GraphStep) -> list[str]:
    """Attributes that hold NumPy arrays: without one, and without `np`, no operator can make another."""
    held = dict(vars(step))
    for cls in type(step).__mro__:
        held = {**vars(cls), **held}

    def has_array(value: Any) -> bool:
        if isinstance(value, dict):
            return any(map(has_array, value.values()))
        if isinstance(value, list | tuple):
            return any(map(has_array, value))
        return isinstance(value, np.ndarray | np.generic)

    return [name for name, value in held.items() if has_array(value)]


class Poison:
    """Stands for something that must not be touched."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} on the per-token path")


@contextmanager
def poisoned(step: GraphStep) -> Iterator[None]:
    """Take NumPy from the modules, and everything from the step that could lead to an array."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (step_module, buffers, ids, sys.modules[type(step._bank).__module__]):
            patch.setattr(module, "np", Poison())
        for name in ("_provider", "_bank", "_manifest", "_graph"):
            patch.setattr(step, name, Poison())
        yield


def watch(step: GraphStep, count: int = NUM_STEPS) -> Watched:
    """Run steps under every detector, each alone so that none sees another's work."""
    watched, call = Watched(held=held_arrays(step)), step.step
    with no_buffers_made(watched):
        for _ in range(count):
            call()
    watched.calls = count_calls(call, count)
    try:
        with poisoned(step):
            call()
    except AssertionError as error:
        watched.forbidden.append(str(error))
    tracemalloc.start()
    try:
        call()
        peaks, growths = [], []
        for _ in range(count):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            call()
            after, peak = tracemalloc.get_traced_memory()
            peaks.append(peak - before)
            growths.append(after - before)
        # The test runner's own threads allocate now and then; a step that allocates does so every time.
        watched.peak = sorted(peaks)[-1 - NUM_STRAYS]
        watched.growth = sum(sorted(growths)[:-NUM_STRAYS])
    finally:
        tracemalloc.stop()
    return watched


MAX_PEAK = 1024  # bytes that ONNX Runtime's Python call and the detector hold for a moment
MAX_GROWTH = 256
NUM_STRAYS = 3  # steps of a run in which another thread may have allocated


@pytest.mark.parametrize("guided", [True, False])
def test_a_step_only_runs_the_graph(generator: Generator, guided: bool) -> None:
    step = new_step(generator) if guided else generator._bundle.base_step()
    preference = "x" if guided else None
    step.prefill(make_request(generator, 0, 1, preference=preference, max_new_tokens=4 * NUM_STEPS))
    before, view = addresses(step), step._take()
    watched = watch(step)
    assert watched.forbidden == []
    assert watched.held == []
    runs = {name: count for name, count in watched.calls.items() if name.startswith("onnxruntime.")}
    own = {"pad_runtime.step:step": NUM_STEPS, "pad_runtime.ids:take": NUM_STEPS}
    assert watched.calls == {**own, **runs}
    assert set(runs.values()) == {NUM_STEPS}
    assert "onnxruntime.capi.onnxruntime_inference_collection:run_with_iobinding" in runs
    assert not [name for name in runs for word in ("bind_", "ortvalue", "numpy", "copy", "dlpack") if word in name]
    assert watched.peak < MAX_PEAK
    assert watched.growth < MAX_GROWTH
    assert addresses(step) == before
    assert step.step() is view


class Rebinding(GraphStep):
    def step(self) -> Any:
        state, following = self._turns[self._turn], self._turns[1 - self._turn]
        self._runs[self._turn] = self._bind(state, following, repeated=True)
        return super().step()


class Uploading(GraphStep):
    def step(self) -> Any:
        self._values[contract.TOP_K] = self._provider.upload(np.array([10]))
        return super().step()


class Reading(GraphStep):
    def step(self) -> Any:
        super().step()
        return self._ids.buffer.read()


class TouchingNumpy(GraphStep):
    def step(self) -> Any:
        return np.asarray(super().step())


class Poisoned(GraphStep):
    def step(self) -> Any:
        super().step()
        return self._manifest.max_length


class UsingArithmetic(GraphStep):
    """An operator, which no profiler sees."""

    scale: Any = np.arange(4.0)

    def step(self) -> Any:
        super().step()
        return self.scale * 2


class Allocating(GraphStep):
    def step(self) -> Any:
        bytes(4096)
        return super().step()


class Leaking(GraphStep):
    kept: list[tuple[int, ...]] = []  # noqa: RUF012

    def step(self) -> Any:
        self.kept.append(tuple(super().step()))
        return self._take()


CAUGHT: dict[type[GraphStep], Callable[[Watched], object]] = {
    Rebinding: lambda watched: {"bind_input", "bind_output", "io_binding"} <= set(watched.forbidden),
    Uploading: lambda watched: "__init__" in watched.forbidden,
    Reading: lambda watched: "read" in watched.forbidden,
    TouchingNumpy: lambda watched: [name for name in watched.calls if name.startswith("numpy")],
    Poisoned: lambda watched: "max_length on the per-token path" in watched.forbidden,
    UsingArithmetic: lambda watched: watched.held,
    Allocating: lambda watched: watched.peak >= MAX_PEAK,
    Leaking: lambda watched: watched.growth >= MAX_GROWTH,
}


@pytest.mark.parametrize("kind", CAUGHT)
def test_each_detector_detects(models: Models, kind: type[GraphStep]) -> None:
    generator = tiny_bundles.load(models.bundle("shared"))
    step = new_step(generator)
    step.prefill(make_request(generator, 0, 1, max_new_tokens=4 * NUM_STEPS))
    step.__class__ = kind
    assert CAUGHT[kind](watch(step))
    step.__class__ = GraphStep
    assert not CAUGHT[kind](watch(step))


@dataclass
class Binding:
    """Byte ranges of one binding, by name."""

    inputs: dict[str, range] = field(default_factory=dict)
    outputs: dict[str, range] = field(default_factory=dict)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> dict[int, Binding]:
    """What is really bound, by IOBinding: noted as it happens."""
    found: dict[int, Binding] = {}
    kept = []  # so that no id is used twice

    def note(which: str, name: str) -> None:
        real = getattr(ort_python.IOBinding, name)

        def noting(
            self: Any, key: str, device: str, number: int, kind: int, shape: tuple[int, ...], address: int
        ) -> None:
            size = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
            kept.append(self)
            getattr(found.setdefault(id(self), Binding()), which)[key] = range(address, address + size)
            real(self, key, device, number, kind, shape, address)

        monkeypatch.setattr(ort_python.IOBinding, name, noting)

    note("inputs", "bind_input")
    note("outputs", "bind_output")
    return found


_TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16}  # onnx.TensorProto


@pytest.mark.parametrize("sequences", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("guided", [True, False])
def test_eight_bytes_a_token_come_back(
    generator: Generator, bindings: dict[int, Binding], sequences: tuple[int, ...], guided: bool
) -> None:
    """Every output but next_ids is an input of the next step, at the same address; next_ids is what the host reads."""
    step = new_step(generator) if guided else generator._bundle.base_step()
    step.prefill(make_request(generator, *sequences, preference="x" if guided else None))
    for turn in (0, 1):
        now, following = (bindings[id(step._runs[(turn + ahead) % 2].args[0])] for ahead in (0, 1))
        assert list(only_read_by_the_host(now, following)) == [contract.NEXT_IDS]
        ids = now.outputs[contract.NEXT_IDS]
        assert len(ids) == 8 * len(sequences) == step.bytes_to_host
        assert ids.start == ctypes.addressof(step._take())
        assert len(ids) == ctypes.sizeof(step._take())
        assert now.inputs.keys() == set(step._input_names)
        # What the step writes beside the KV cache, it does not read in the same step.
        read = [where for name, where in now.inputs.items() if "past_key_values" not in name]
        for name, where in now.outputs.items():
            if "present" not in name:
                assert not any(where.start < other.stop and other.start < where.stop for other in read), name


def only_read_by_the_host(now: Binding, following: Binding) -> dict[str, range]:
    fed_back = set(following.inputs.values())
    return {name: where for name, where in now.outputs.items() if where not in fed_back}


def test_a_trace_is_counted_as_read_by_the_host(generator: Generator, bindings: dict[int, Binding]) -> None:
    """The control of the test above: with a trace, more comes back."""
    step = new_step(generator)
    step.prefill(make_request(generator, 0, trace=True))
    now, following = (bindings[id(step._runs[turn].args[0])] for turn in (0, 1))
    assert set(only_read_by_the_host(now, following)) == {contract.NEXT_IDS, *contract.TRACE_OUTPUTS}


def test_the_kv_cache_is_one_buffer(generator: Generator, bindings: dict[int, Binding]) -> None:
    step = new_step(generator)
    step.prefill(make_request(generator, 0, 1))
    for binding in bindings.values():
        outputs = {name: where for name, where in binding.outputs.items() if "present" in name}
        layers = sum(trunk.num_layers for trunk in generator.manifest.trunks)
        assert len(outputs) == len(set(outputs.values())) == 2 * layers
        for name, where in outputs.items():
            assert binding.inputs[name.replace("present", "past_key_values")] == where

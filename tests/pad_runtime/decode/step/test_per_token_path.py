"""After prefill a step only runs the graph; and whatever else it might do, a detector notices."""

from __future__ import annotations

import collections
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as ort_python

from pad_rt import Generator
from pad_runtime.bundle import contract
from pad_runtime.decode import step as step_module
from pad_runtime.decode.step import GraphStep
from pad_runtime.devices import buffers, ids
from tests.support import tiny_bundles
from tests.support.guided_steps import NUM_STEPS, Models, addresses, make_request, new_step


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
        for name in ("_memory", "_bank", "_manifest", "_graph"):
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
    own = {"pad_runtime.decode.step:step": NUM_STEPS, "pad_runtime.devices.ids:take": NUM_STEPS}
    # A look at the weights' file before the run and after: nothing of another content is given out.
    own |= {"pad_runtime.bundle.held_file:watched": NUM_STEPS, "pad_runtime.bundle.held_file:check": 2 * NUM_STEPS}
    own["posix:fstat"] = 2 * NUM_STEPS
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
        self._values[contract.TOP_K] = self._memory.upload(np.array([10]))
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

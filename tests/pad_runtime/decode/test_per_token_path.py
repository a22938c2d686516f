"""Once its slots are stepped together a step only runs the graph; and whatever else it might do, a detector notices."""

from __future__ import annotations

import collections
import ctypes
import functools
import sys
import tracemalloc
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as ort_python

from pad_runtime.decode.arena import Lease
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.ready import Chosen
from pad_runtime.decode.slot import Slot
from pad_runtime.devices import buffers
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.loaded_bundle import Bundle
from tests.support import tiny_bundles
from tests.support.guided_steps import NUM_STEPS, Models, ask, open_slots, step_together

NUM_WATCHED = 4 * NUM_STEPS  # steps that are run under all detectors, and some more


@dataclass
class Watched:
    """What happened while steps ran."""

    calls: collections.Counter[str] = field(default_factory=collections.Counter)  # C and Python functions
    runners: list[Any] = field(default_factory=list)  # objects of the decoder and its devices that a step runs through
    forbidden: list[str] = field(default_factory=list)  # what makes, binds or reads a buffer, or was out of bounds
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


def count_calls(watched: Watched, step: Callable[[], Any], count: int) -> None:
    """Every function called, by module and name, Python's and C's; and whose methods they are."""
    calls: collections.Counter[str] = collections.Counter()
    selves: dict[int, Any] = {}

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            module = getattr(argument, "__module__", None) or type(getattr(argument, "__self__", None)).__module__
            calls[f"{module}:{argument.__name__}"] += 1
        elif event == "call":
            calls[f"{frame.f_globals.get('__name__')}:{frame.f_code.co_name}"] += 1
            if "self" in frame.f_locals:
                selves[id(frame.f_locals["self"])] = frame.f_locals["self"]

    turns = range(count)
    sys.setprofile(profile)
    for _ in turns:
        step()
    sys.setprofile(None)
    del calls["sys:setprofile"]
    watched.calls = calls
    watched.runners = [value for value in selves.values() if _is_ours(type(value))]


def _is_ours(kind: type) -> bool:
    return any(base.__module__.startswith(("pad_runtime.decode", "pad_runtime.devices")) for base in kind.__mro__)


class Poison:
    """Stands for something that must not be touched; it has no operators either."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} on the per-token path")


# All that a step may use beside the objects that it runs through: with nothing else, and without `np`, there is no way
# to an array. What a slot has in the cache and what was chosen are told to others by these.
_PLAIN = (type(None), bool, int, str, array, ctypes.Array, collections.deque, functools.partial, Lease, Chosen)


@contextmanager
def poisoned(runners: list[Any]) -> Iterator[None]:
    """Take NumPy from the modules, and from all objects on the way what could lead to an array."""

    def is_plain(value: Any) -> bool:
        if isinstance(value, list | tuple | set):
            return all(map(is_plain, value))
        if isinstance(value, MethodType):
            return is_plain(value.__self__)
        return isinstance(value, _PLAIN) or any(value is runner for runner in runners)

    kinds = {kind for runner in runners for kind in type(runner).__mro__}
    arrays = [name for kind in kinds for name, value in vars(kind).items() if isinstance(value, np.ndarray)]
    kept = [
        (runner, {name: value for name, value in vars(runner).items() if not is_plain(value)}) for runner in runners
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module in {sys.modules[kind.__module__] for kind in kinds} | {buffers}:
            if hasattr(module, "np"):
                patch.setattr(module, "np", Poison())
        for runner, values in kept:
            vars(runner).update(dict.fromkeys((*values, *arrays), Poison()))
        try:
            yield
        finally:
            for runner, values in kept:
                for name in arrays:
                    vars(runner).pop(name, None)
                vars(runner).update(values)


def addresses(watched: Watched) -> dict[str, int]:
    """Where every buffer lies that an object on the way holds."""
    found = {}

    def look(at: str, value: Any) -> None:
        if isinstance(value, buffers.HostBuffer | buffers.CudaBuffer):
            found[at] = value.address
        elif isinstance(value, Mapping):
            for key, item in value.items():
                look(f"{at}.{key}", item)
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                look(f"{at}.{number}", item)

    for number, runner in enumerate(watched.runners):
        for name, value in vars(runner).items():
            look(f"{number}.{name}", value)
    return found


def watch(decoder: Decoder, slots: list[Slot], count: int = NUM_STEPS) -> Watched:
    """Run steps under every detector, each alone so that none sees another's work."""
    watched, call = Watched(), functools.partial(decoder.step, slots)
    with no_buffers_made(watched):
        for _ in range(count):
            call()
    count_calls(watched, call, count)
    before = addresses(watched)
    try:
        with poisoned(watched.runners):
            call()
    except (AssertionError, TypeError) as error:
        watched.forbidden.append(str(error))
    tracemalloc.start()
    try:
        call()
        peaks, growths = [], []
        for _ in range(count):
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            call()
            after, peak = tracemalloc.get_traced_memory()
            peaks.append(peak - held)
            growths.append(after - held)
        # The test runner's own threads allocate now and then; a step that allocates does so every time.
        watched.peak = sorted(peaks)[-1 - NUM_STRAYS]
        watched.growth = sum(sorted(growths)[:-NUM_STRAYS])
    finally:
        tracemalloc.stop()
    if addresses(watched) != before:
        watched.forbidden.append("other buffers")
    return watched


MAX_PEAK = 1024  # bytes that ONNX Runtime's Python call and the detector hold for a moment
MAX_GROWTH = 256
NUM_STRAYS = 3  # steps of a run in which another thread may have allocated


@pytest.mark.parametrize("guided", [True, False])
def test_a_step_only_runs_the_graph(bundle: Bundle, decoder: Decoder, guided: bool) -> None:
    slots = open_slots(decoder, ask(bundle.manifest, 0, 1, guided=guided, new_tokens=NUM_WATCHED))
    step_together(decoder, slots, 2)
    view = decoder.step(slots).ids
    watched = watch(decoder, slots)
    assert watched.forbidden == []
    runs = {name: count for name, count in watched.calls.items() if name.startswith("onnxruntime.")}
    own = dict.fromkeys(("decoder:step", "ready:step", "ready:has_ended", "run:step"), NUM_STEPS)
    own = {f"pad_runtime.decode.{name}": count for name, count in (own | {"slot:advance": 2 * NUM_STEPS}).items()}
    own["pad_runtime.devices.ids:take"] = NUM_STEPS
    # A look at the weights' file before the run and after: nothing of another content is given out.
    own |= {"pad_runtime.bundle.held_file:watched": NUM_STEPS, "pad_runtime.bundle.held_file:check": 2 * NUM_STEPS}
    own["posix:fstat"] = 2 * NUM_STEPS
    assert watched.calls == {**own, **runs}
    assert set(runs.values()) == {NUM_STEPS}
    assert "onnxruntime.capi.onnxruntime_inference_collection:run_with_iobinding" in runs
    assert not [name for name in runs for word in ("bind_", "ortvalue", "numpy", "copy", "dlpack") if word in name]
    assert watched.peak < MAX_PEAK
    assert watched.growth < MAX_GROWTH
    assert len(addresses(watched)) > 20
    assert decoder.step(slots).ids is view


class Rebinding(Decoder):
    """No run is ready for another number of candidates."""

    def step(self, slots: Any, **options: Any) -> Any:
        sampling = slots[0].sequence.sampling
        self.adopt(slots[0], replace(slots[0].sequence, sampling=replace(sampling, top_k=sampling.top_k + 1)))
        return super().step(slots, **options)


class Uploading(Decoder):
    def step(self, slots: Any, **options: Any) -> Any:
        DeviceMemory(cuda=None).upload(np.array([10]))
        return super().step(slots, **options)


class Reading(Decoder):
    def step(self, slots: Any, **options: Any) -> Any:
        self.cache(slots[0], 0, 0)
        return super().step(slots, **options)


class TouchingNumpy(Decoder):
    def step(self, slots: Any, **options: Any) -> Any:
        return np.asarray(super().step(slots, **options).ids)


class OutOfBounds(Decoder):
    def step(self, slots: Any, **options: Any) -> Any:
        super().step(slots, **options)
        return slots[0].sequence.rows


class UsingArithmetic(Decoder):
    """An operator, which no profiler sees."""

    scale: Any = np.arange(4.0)

    def step(self, slots: Any, **options: Any) -> Any:
        super().step(slots, **options)
        return self.scale * 2


class OtherBuffers(Decoder):
    held: Any

    def step(self, slots: Any, **options: Any) -> Any:
        self.held = buffers.HostBuffer(np.zeros(2))
        return super().step(slots, **options)


class Allocating(Decoder):
    def step(self, slots: Any, **options: Any) -> Any:
        bytes(4096)
        return super().step(slots, **options)


class Leaking(Decoder):
    kept: list[tuple[int, ...]] = []  # noqa: RUF012

    def step(self, slots: Any, **options: Any) -> Any:
        chosen = super().step(slots, **options)
        self.kept.append(tuple(chosen.ids))
        return chosen


CAUGHT: dict[type[Decoder], Callable[[Watched], object]] = {
    Rebinding: lambda watched: {"bind_input", "bind_output", "io_binding"} <= set(watched.forbidden),
    Uploading: lambda watched: "__init__" in watched.forbidden,
    Reading: lambda watched: "read" in watched.forbidden,
    TouchingNumpy: lambda watched: [name for name in watched.calls if name.startswith("numpy")],
    OutOfBounds: lambda watched: "rows on the per-token path" in watched.forbidden,
    UsingArithmetic: lambda watched: [line for line in watched.forbidden if "Poison" in line],
    OtherBuffers: lambda watched: "other buffers" in watched.forbidden,
    Allocating: lambda watched: watched.peak >= MAX_PEAK,
    Leaking: lambda watched: watched.growth >= MAX_GROWTH,
}


@pytest.mark.parametrize("kind", CAUGHT)
def test_each_detector_detects(models: Models, kind: type[Decoder]) -> None:
    bundle = tiny_bundles.open_bundle(models.bundle("shared"))
    decoder = bundle.decoder()
    for wrong in (True, False):
        slots = open_slots(decoder, ask(bundle.manifest, 0, 1, new_tokens=NUM_WATCHED))
        step_together(decoder, slots, 2)
        if wrong:
            decoder.__class__ = kind
        watched = watch(decoder, slots)
        decoder.__class__ = Decoder
        assert bool(CAUGHT[kind](watched)) is wrong

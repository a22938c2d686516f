"""The few calls of CUDA's runtime, against a simulated device."""

from __future__ import annotations

import gc
from functools import partial

import numpy as np
import pytest

import fake_cuda
from error_checks import refused
from fake_cuda import FakeRuntime
from pad_runtime.buffers import CudaBuffer, IdsBuffer
from pad_runtime.cuda import Cuda, Gpu
from pad_runtime.errors import DeviceError, OutOfMemoryError


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    return fake_cuda.install(monkeypatch)


def test_a_gpu_is_described(runtime: FakeRuntime) -> None:
    assert Cuda().gpu() == Gpu("NVIDIA Thing", "sm89", 2**33, "13.0", "12.8")


def test_no_device_and_no_driver_are_told_apart(runtime: FakeRuntime) -> None:
    runtime.devices = 0
    with refused(DeviceError, given="no CUDA device"):
        Cuda()
    runtime.driver = 0
    with refused(DeviceError, given="insufficient"):
        Cuda()


def test_a_buffer_is_zero_then_what_is_written_and_goes_back(runtime: FakeRuntime) -> None:
    buffer = CudaBuffer(Cuda(), (2, 3), np.float16)
    assert buffer.read().tolist() == [[0.0] * 3] * 2
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    buffer.write(values.T.copy().T)  # not in C order
    assert buffer.read().tolist() == values.tolist()
    assert (buffer.shape, buffer.dtype, buffer.device) == ((2, 3), np.float16, "cuda")
    assert list(runtime.blocks) == [buffer.address]
    del buffer
    gc.collect()
    assert not runtime.blocks


def test_a_buffer_without_a_size(runtime: FakeRuntime) -> None:
    buffer = CudaBuffer(Cuda(), (), np.int32)
    buffer.write(np.array(7, np.int32))
    assert buffer.read() == 7
    assert CudaBuffer(Cuda(), (0, 4), np.int32).read().shape == (0, 4)


def test_no_memory(runtime: FakeRuntime) -> None:
    runtime.memory = 2**20
    with refused(OutOfMemoryError, given="no memory for a buffer of 2 MiB", hint="shorter prompts"):
        CudaBuffer(Cuda(), (2**21,), np.uint8)


def test_ids_are_copied_then_waited_for_and_given_back(runtime: FakeRuntime) -> None:
    ids = IdsBuffer.on_cuda(Cuda(), 2)
    read = ids.reading(partial(ids.buffer.write, np.array([4, 5], np.int64)))
    read()
    assert list(ids.view) == [4, 5]
    assert runtime.calls[-2:] == ["copy", "wait"]
    del ids, read
    gc.collect()
    assert not runtime.blocks


def test_a_failing_device_is_told(runtime: FakeRuntime) -> None:
    pinned = Cuda().pinned_ids(1)
    runtime.failing = 700
    with refused(DeviceError, given="CUDA error 700"):
        pinned.fetch(np.zeros(1, np.int64).ctypes.data)


def test_a_capture_runs_when_it_is_launched_and_not_before(runtime: FakeRuntime) -> None:
    cuda, done = Cuda(), []
    graph = cuda.capture(lambda: runtime.enqueue(lambda: done.append(1)))
    assert not done
    graph.launch()
    graph.launch()
    assert done == [1, 1]
    assert runtime.captured == 1
    del graph
    assert not runtime.captured


def test_a_capture_that_fails_ends(runtime: FakeRuntime) -> None:
    def fail() -> None:
        raise DeviceError("no", hint="no")

    cuda = Cuda()
    with refused(DeviceError, given="no"):
        cuda.capture(fail)
    assert runtime._recording is None
    assert not runtime.captured

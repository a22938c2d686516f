"""The few calls of CUDA's runtime, against a simulated device."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from pad_runtime.devices.buffers import CudaBuffer
from pad_runtime.devices.cuda import Gpu, find_cuda
from pad_runtime.devices.ids import CudaIds
from pad_runtime.errors import DeviceError, OutOfMemoryError
from tests.support import fake_cuda
from tests.support.error_checks import refused
from tests.support.fake_cuda import FakeRuntime


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    return fake_cuda.install(monkeypatch)


def test_a_gpu_is_described(runtime: FakeRuntime) -> None:
    assert find_cuda().gpu() == Gpu("NVIDIA Thing", "sm89", 2**33, "13.0", "12.8")


def test_no_device_and_no_driver_are_told_apart(runtime: FakeRuntime) -> None:
    runtime.devices = 0
    with refused(DeviceError, given="no CUDA device"):
        find_cuda()
    runtime.driver = 0
    with refused(DeviceError, given="insufficient"):
        find_cuda()


def test_a_buffer_is_zero_then_what_is_written_and_goes_back(runtime: FakeRuntime) -> None:
    buffer = CudaBuffer(find_cuda(), (2, 3), np.float16)
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
    buffer = CudaBuffer(find_cuda(), (), np.int32)
    buffer.write(np.array(7, np.int32))
    assert buffer.read() == 7
    assert CudaBuffer(find_cuda(), (0, 4), np.int32).read().shape == (0, 4)


def test_no_memory(runtime: FakeRuntime) -> None:
    runtime.memory = 2**20
    with refused(OutOfMemoryError, given="no memory for a buffer of 2 MiB", hint="shorter prompts"):
        CudaBuffer(find_cuda(), (2**21,), np.uint8)


def choosing(ids: CudaIds, *choices: list[int]) -> Callable[[], object]:
    """A run that chooses these, one after another."""
    arrays, buffer = iter([np.array(choice, np.int64) for choice in choices]), ids.buffer
    return ids.bind(lambda: buffer.write(next(arrays)))


def test_ids_are_copied_while_the_next_run_is_started(runtime: FakeRuntime) -> None:
    ids = CudaIds(find_cuda(), 2)
    start = choosing(ids, [4, 5], [6, 7], [8, 9])
    start()
    start()
    runtime.calls.clear()
    first = ids.take()
    assert list(first) == [4, 5]
    assert runtime.calls == ["wait"]
    start()
    assert [list(ids.take()), list(ids.take())] == [[6, 7], [8, 9]]
    del ids, start
    gc.collect()
    assert not runtime.blocks


def test_forgotten_ids_are_waited_for_and_not_taken(runtime: FakeRuntime) -> None:
    ids = CudaIds(find_cuda(), 1)
    start = choosing(ids, [1], [2])
    start()
    runtime.calls.clear()
    ids.forget()
    ids.forget()
    assert runtime.calls == ["wait"]
    start()
    assert list(ids.take()) == [2]


def test_a_failing_device_is_told(runtime: FakeRuntime) -> None:
    ids = CudaIds(find_cuda(), 1)
    ids.bind(lambda: None)()
    runtime.failing = 700
    with refused(DeviceError, given="(CUDA error 700)", hint="start the process again"):
        ids.take()
    runtime.failing = 0


def test_a_copy_that_does_not_start_is_told(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event would say that the ids of an earlier step are there."""
    ids = CudaIds(find_cuda(), 1)
    start = ids.bind(lambda: None)
    monkeypatch.setattr(ids._places[0], "_copy", lambda *arguments: (900,))
    with refused(DeviceError, given="(CUDA error 900)"):
        start()


def test_a_process_has_one_stream_and_one_lock(runtime: FakeRuntime) -> None:
    assert find_cuda() is find_cuda()


def test_a_capture_runs_when_it_is_launched_and_not_before(runtime: FakeRuntime) -> None:
    cuda, done = find_cuda(), []
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

    cuda = find_cuda()
    with refused(DeviceError, given="no"):
        cuda.capture(fail)
    assert runtime._recording is None
    assert not runtime.captured


def test_cuda_python_takes_these_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no driver every call is refused for that, and none for its arguments."""
    real = pytest.importorskip("cuda.bindings.runtime")
    if int(real.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a device: tests/gpu runs on it")
    fake = FakeRuntime()
    names = [name for name in vars(fake) if name.startswith("cuda") and callable(getattr(fake, name))]
    assert len(names) > 15
    kind, within = real.cudaMemcpyKind.cudaMemcpyHostToDevice, real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    mode = real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    arguments = {
        "cudaGetErrorString": [real.cudaError_t.cudaErrorInsufficientDriver],
        "cudaSetDevice": [0],
        "cudaStreamCreateWithFlags": [real.cudaStreamNonBlocking],
        "cudaStreamSynchronize": [77],
        "cudaEventCreateWithFlags": [real.cudaEventDisableTiming],
        "cudaEventElapsedTime": [real.cudaEvent_t(0), real.cudaEvent_t(0)],
        "cudaEventRecord": [real.cudaEvent_t(0), 77],
        "cudaEventSynchronize": [real.cudaEvent_t(0)],
        "cudaGetDeviceProperties": [0],
        "cudaMalloc": [64],
        "cudaMallocHost": [64],
        "cudaMemsetAsync": [4096, 0, 64, 77],
        "cudaMemcpyAsync": [4096, 8192, 64, kind, 77],
        "cudaMemcpy2DAsync": [4096, 64, 8192, 64, 32, 2, within, 77],
        "cudaStreamBeginCapture": [77, mode],
        "cudaStreamEndCapture": [77],
        "cudaGraphInstantiate": [real.cudaGraph_t(0), 0],
        "cudaGraphLaunch": [real.cudaGraphExec_t(0), 77],
    }
    for name in names:
        if name.endswith(("Destroy", "Free", "FreeHost")):
            assert callable(getattr(real, name))
            continue
        result = getattr(real, name)(*arguments.get(name, []))
        assert int(result[0]) in (0, 1, 35, 400, 401), (name, result)
    with refused(DeviceError, given="CUDA driver version is insufficient", hint="--device cpu"):
        find_cuda()

"""Windows of buffers and copies between caches, in the host's memory and on a simulated device."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.cuda import find_cuda
from pad_runtime.devices.memory import DeviceMemory
from tests.support import fake_cuda
from tests.support.fake_cuda import FakeRuntime

SHAPE = (5, 2, 7, 3)  # rows, heads, slots, head_dim
UNREAD = np.float16(np.nan)  # what must not be copied


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    return fake_cuda.install(monkeypatch)


@pytest.fixture(params=["host", "cuda"])
def memory(request: pytest.FixtureRequest, runtime: FakeRuntime) -> DeviceMemory:
    return DeviceMemory(find_cuda() if request.param == "cuda" else None)


def numbers(shape: tuple[int, ...], first: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(first, first + np.prod(shape), dtype=np.float16).reshape(shape)


def made(memory: DeviceMemory, array: np.ndarray[Any, Any]) -> Buffer:
    return memory.upload(array.copy())


# -- windows ----------------------------------------------------------------------------------------------------------


def test_a_window_is_some_rows_of_the_same_memory(memory: DeviceMemory) -> None:
    values = numbers(SHAPE)
    buffer = made(memory, values)
    window = buffer.window(1, 3)
    assert (window.shape, window.dtype, window.device) == ((3, *SHAPE[1:]), np.float16, buffer.device)
    assert window.read().tolist() == values[1:4].tolist()
    values[1:4] = numbers((3, *SHAPE[1:]), 500)
    window.write(values[1:4])
    assert buffer.read().tolist() == values.tolist()
    values[2] = -1
    buffer.write(values)
    assert window.read().tolist() == values[1:4].tolist()


def test_a_window_of_a_window_counts_from_its_parent(memory: DeviceMemory) -> None:
    values = numbers(SHAPE)
    window = made(memory, values).window(1, 4).window(2, 2).window(1, 1)
    assert window.read().tolist() == values[4:5].tolist()


def test_windows_of_all_rows_and_of_none(memory: DeviceMemory) -> None:
    buffer = made(memory, numbers(SHAPE))
    assert buffer.window(0, 5).address == buffer.address
    assert buffer.window(5, 0).read().shape == (0, *SHAPE[1:])


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 6), (5, 1), (3, -1)])
def test_rows_that_are_not_there_are_no_window(memory: DeviceMemory, first: int, count: int) -> None:
    buffer = made(memory, numbers((7, 1))).window(1, 5)  # the memory around it is there
    with pytest.raises(IndexError, match="of a buffer of shape"):
        buffer.window(first, count)


def test_a_number_has_no_rows(memory: DeviceMemory) -> None:
    with pytest.raises(IndexError):
        memory.zeros((), np.int32).window(0, 1)


def test_a_window_keeps_device_memory_until_the_last_one_goes(runtime: FakeRuntime) -> None:
    buffer = made(DeviceMemory(find_cuda()), numbers(SHAPE))
    window = buffer.window(0, 4)
    inner = window.window(2, 1)
    del buffer, window
    gc.collect()
    assert len(runtime.blocks) == 1
    assert inner.read().tolist() == numbers(SHAPE)[2:3].tolist()
    del inner
    gc.collect()
    assert not runtime.blocks


def test_a_window_that_goes_frees_nothing(runtime: FakeRuntime) -> None:
    buffer = made(DeviceMemory(find_cuda()), numbers(SHAPE))
    buffer.window(0, 1)
    buffer.window(1, 2).window(0, 1)
    gc.collect()
    assert list(runtime.blocks) == [buffer.address]
    assert buffer.read().tolist() == numbers(SHAPE).tolist()


def test_a_window_keeps_the_hosts_memory() -> None:
    buffer = DeviceMemory(None).zeros(SHAPE, np.float16)
    array = weakref.ref(buffer.array)  # type: ignore[attr-defined]
    window = buffer.window(1, 2)
    del buffer
    gc.collect()
    assert array() is not None
    del window
    gc.collect()
    assert array() is None


# -- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_takes_the_filled_slots_and_leaves_the_others(memory: DeviceMemory) -> None:
    """A longer cache takes over a shorter one's rows, as an arena that grows does."""
    old, new = numbers((2, 2, 5, 3)), numbers((4, 2, 8, 3), 500)
    old[:, :, 4:] = UNREAD
    source, target = made(memory, old), made(memory, new)
    memory.copy(source, target.window(1, 2), 4)
    new[1:3, :, :4] = old[:, :, :4]
    assert target.read().tolist() == new.tolist()
    assert not np.isnan(target.read()).any()
    memory.copy(target.window(1, 2), source, 3)  # and back to the shorter one
    assert np.array_equal(source.read(), old, equal_nan=True)


def test_a_row_moves_within_its_buffer(memory: DeviceMemory) -> None:
    values = numbers(SHAPE)
    buffer = made(memory, values)
    memory.copy(buffer.window(3, 2), buffer.window(0, 2), 6)
    values[0:2, :, :6] = values[3:5, :, :6]
    assert buffer.read().tolist() == values.tolist()


@pytest.mark.parametrize("length", [0, 7])
def test_a_copy_to_itself_or_of_nothing_starts_nothing(memory: DeviceMemory, runtime: FakeRuntime, length: int) -> None:
    buffer = made(memory, numbers(SHAPE))
    runtime.calls.clear()
    memory.copy(buffer.window(1, 2), buffer.window(1, 2), length)
    memory.copy(buffer.window(1, 2), buffer.window(3, 2), 0)
    memory.copy(buffer.window(1, 0), buffer.window(3, 0), length)
    assert not runtime.calls
    assert buffer.read().tolist() == numbers(SHAPE).tolist()


def test_a_copy_on_a_device_is_one_call_that_nobody_waits_for(runtime: FakeRuntime) -> None:
    memory = DeviceMemory(find_cuda())
    source, target = memory.zeros(SHAPE, np.float16), memory.zeros(SHAPE, np.float16)
    runtime.calls.clear()
    memory.copy(source, target, 4)
    assert runtime.calls == ["copy rows"]


@pytest.mark.parametrize(
    ("source", "target", "length"),
    [
        ((2, 2, 5, 3), (2, 2, 8, 3), 6),
        ((2, 2, 8, 3), (2, 2, 5, 3), 6),
        ((2, 2, 8, 3), (2, 2, 8, 3), -1),
        ((2, 2, 8, 3), (3, 2, 8, 3), 1),
        ((2, 2, 8, 3), (2, 1, 8, 3), 1),
        ((2, 2, 8, 3), (2, 2, 8, 4), 1),
    ],
)
def test_caches_that_do_not_go_together_are_not_copied(
    memory: DeviceMemory, source: tuple[int, ...], target: tuple[int, ...], length: int
) -> None:
    with pytest.raises(ValueError, match="positions of"):
        memory.copy(memory.zeros(source, np.float16), memory.zeros(target, np.float16), length)


def test_another_type_is_not_copied(memory: DeviceMemory) -> None:
    with pytest.raises(ValueError, match="float32"):
        memory.copy(memory.zeros(SHAPE, np.float16), memory.zeros(SHAPE, np.float32), 1)


def test_rows_that_overlap_are_not_copied(memory: DeviceMemory) -> None:
    """A device copies them in any order."""
    buffer = memory.zeros(SHAPE, np.float16)
    with pytest.raises(ValueError, match="overlap"):
        memory.copy(buffer.window(0, 3), buffer.window(2, 3), 1)


rows = st.integers(0, 4)


@given(moves=st.lists(st.tuples(rows, rows, st.integers(0, 7), st.booleans()), max_size=12))
def test_any_copies_give_what_numpy_gives(moves: list[tuple[int, int, int, bool]]) -> None:
    arrays = [numbers(SHAPE), numbers((5, 2, 9, 3), 300)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_cuda.install(monkeypatch)
        memories = [DeviceMemory(None), DeviceMemory(find_cuda())]
        buffers = [[made(memory, array) for array in arrays] for memory in memories]
        for source, target, length, grows in moves:
            for memory, pair in zip(memories, buffers, strict=True):
                memory.copy(pair[0].window(source, 1), pair[grows].window(target, 1), length)
            arrays[grows][target, :, :length] = arrays[0][source, :, :length]
        for pair in buffers:
            assert [each.read().tolist() for each in pair] == [each.tolist() for each in arrays]


# -- the simulated device notices what a real one would not tell -------------------------------------------------------


# Of two rows of 8 bytes, 16 apart, in 24 bytes of memory; addresses count from there.
RIGHT = {
    "to": 0,
    "to_pitch": 16,
    "source": 0,
    "source_pitch": 16,
    "size": 8,
    "count": 2,
}


def copy_rows(runtime: FakeRuntime, **fault: int) -> None:
    cuda = find_cuda()
    to, source = cuda.allocate(24), cuda.allocate(24)
    given = RIGHT | fault
    cuda.copy_rows(*(given | {"to": to.address + given["to"], "source": source.address + given["source"]}).values())


@pytest.mark.parametrize(
    "fault",
    [{"size": 17}, {"count": 3}, {"to": 1}, {"to": -1}, {"source": 1}, {"source": -1}],
    ids=["a row too long", "too many rows", "past the target", "before it", "past the source", "before it"],
)
def test_a_wrong_copy_is_noticed(runtime: FakeRuntime, fault: dict[str, int]) -> None:
    copy_rows(runtime)
    with pytest.raises(AssertionError):
        copy_rows(runtime, **fault)


def test_a_copy_that_overlaps_is_noticed(runtime: FakeRuntime) -> None:
    cuda = find_cuda()
    memory = cuda.allocate(48)
    cuda.copy_rows(memory.address, 16, memory.address + 24, 16, 8, 2)
    with pytest.raises(AssertionError, match="any order"):
        cuda.copy_rows(memory.address, 16, memory.address + 23, 16, 8, 2)


def test_a_copy_from_memory_that_was_given_back_is_noticed(runtime: FakeRuntime) -> None:
    cuda = find_cuda()
    to, gone = cuda.allocate(24), cuda.allocate(24).address
    with pytest.raises(AssertionError, match="not the device's"):
        cuda.copy_rows(to.address, 16, gone, 16, 8, 2)

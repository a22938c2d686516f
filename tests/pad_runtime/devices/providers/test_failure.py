"""A lack of memory, as ONNX Runtime says it, becomes an error of its own type: seen with the real thing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pad_runtime.devices.buffers import HostBuffer
from pad_runtime.devices.ort.failure import is_out_of_memory, telling_out_of_memory
from pad_runtime.devices.ort.graph import OrtGraph
from pad_runtime.errors import OutOfMemoryError
from tests.support.error_checks import refused

BEYOND = (2**28, 2**30)  # float32: more than any processor can address


def expand(*, arena: bool) -> OrtGraph:
    """The sum of a number that is expanded to a shape of two sizes."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
    ]
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["allocated"], name="allocate"),
        helper.make_node("ReduceSum", ["allocated"], ["sum"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])]
    graph = helper.make_graph(nodes, "allocation", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[onnx.OperatorSetIdProto(version=17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena, options.log_severity_level = arena, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return OrtGraph(session, lambda repeated: (onnxruntime.RunOptions(), None))


def bound(shape: tuple[int, int], *, arena: bool, repeated: bool = False) -> tuple[Callable[[], object], HostBuffer]:
    total = HostBuffer(np.zeros((), np.float32))
    inputs = {"x": HostBuffer(np.ones(1, np.float32)), "shape": HostBuffer(np.array(shape, np.int64))}
    return expand(arena=arena).bind(inputs, {"sum": total}, repeated=repeated), total


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(
    ("arena", "given"), [(True, "no memory for a buffer of 1,099,511,627,776 MiB"), (False, "no memory for a buffer")]
)
def test_a_run_without_memory(arena: bool, given: str, repeated: bool) -> None:
    run, _ = bound(BEYOND, arena=arena, repeated=repeated)
    with refused(OutOfMemoryError, given=given, hint="use shorter prompts"):
        run()


def test_other_failures_are_what_onnx_runtime_raises() -> None:
    """The control: a shape that does not fit, at a node whose name is in the message."""
    run, _ = bound((-1, 2), arena=True)
    with pytest.raises(Exception, match="allocate") as raised:
        run()
    assert not isinstance(raised.value, OutOfMemoryError)
    assert not is_out_of_memory(raised.value)
    run, total = bound((3, 2), arena=True)
    run()
    assert total.read() == 6


@pytest.mark.parametrize(
    "words",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_words_of_libraries_that_are_not_here(words: str) -> None:
    error = RuntimeError(f"Non-zero status code returned while running MatMul node. Status Message: {words}")

    def fail() -> None:
        raise error

    assert is_out_of_memory(error)
    with refused(OutOfMemoryError, given="no memory for a buffer", hint="smaller batch"):
        telling_out_of_memory(fail)()

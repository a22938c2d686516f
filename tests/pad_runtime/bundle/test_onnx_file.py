"""Read against the onnx package."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from pad_runtime.bundle.onnx_file import ExternalTensor, Node, OnnxFile, rename_file
from pad_runtime.errors import BundleError
from tests.support.error_checks import refused


@pytest.mark.parametrize("name", ["step.onnx", "base.onnx", "score.onnx"])
def test_a_graph_as_the_onnx_package_reads_it(tiny_bundle: Path, name: str) -> None:
    read = OnnxFile.read(tiny_bundle / name)
    graph = onnx.load_model(tiny_bundle / name, load_external_data=False).graph
    assert read.nodes == tuple(Node(node.op_type, tuple(node.input)) for node in graph.node)
    expected = {}
    for tensor in graph.initializer:
        if entries := {entry.key: entry.value for entry in tensor.external_data}:
            place = (entries["location"], int(entries["offset"]), int(entries["length"]))
            expected[tensor.name] = ExternalTensor(tensor.name, tensor.data_type, tuple(tensor.dims), *place)
    assert {tensor.name: tensor for tensor in read.tensors} == expected
    assert expected


@pytest.mark.parametrize("new", ["w", "weights.bin", "b" * 64, "ü" * 150])
def test_the_same_model_over_another_file(tiny_bundle: Path, new: str) -> None:
    content = (tiny_bundle / "step.onnx").read_bytes()
    expected = onnx.load_model_from_string(content)
    for tensor in expected.graph.initializer:
        for entry in tensor.external_data:
            entry.value = new if entry.key == "location" else entry.value
    assert onnx.load_model_from_string(rename_file(content, "weights.bin", new)) == expected
    assert onnx.load_model_from_string(rename_file(content, "other.bin", new)) == onnx.load_model_from_string(content)


def tensor_message(dims: bytes) -> bytes:
    """A model with one external tensor, whose TensorProto.dims are written as given."""

    def part(field: int, content: bytes) -> bytes:
        return bytes([field << 3 | 2, len(content)]) + content

    entries = b"".join(
        part(13, part(1, key) + part(2, value)) for key, value in ((b"location", b"w"), (b"length", b"2400"))
    )
    return part(7, part(5, dims + b"\x10\x01" + part(8, b"t") + entries))


@pytest.mark.parametrize("dims", [b"\x08\xac\x02\x08\x02", b"\x0a\x03\xac\x02\x02"])
def test_dimensions_one_by_one_and_packed(tmp_path: Path, dims: bytes) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(tensor_message(dims))
    assert list(onnx.load_model(path, load_external_data=False).graph.initializer[0].dims) == [300, 2]
    assert OnnxFile.read(path).tensors == (ExternalTensor("t", 1, (300, 2), "w", 0, 2400),)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it has no graph"),
        (b"no ONNX file at all", "wire type"),
        (b"\x3a\xff\xff\x03cut", "it ends early"),
        (b"\xff" * 10**6, "a number does not end"),
        (b"\x3a\x02\x0a\x00", "a field is missing"),
    ],
)
def test_a_file_that_is_no_graph(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "step.onnx"
    path.write_bytes(data)
    with refused(BundleError, given=f"{path} is not an ONNX file: {reason}", hint="export it again"):
        OnnxFile.read(path)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with refused(BundleError, given=f"{tmp_path / 'step.onnx'} is not an ONNX file", hint="export it again"):
        OnnxFile.read(tmp_path / "step.onnx")

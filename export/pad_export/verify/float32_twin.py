"""The float32 twin of a bfloat16 bundle: ONNX Runtime's CPU provider can run it, so that the bundle can be verified.

The provider has next to no bfloat16 kernels (no MatMul, no Add, no attention), but it can cast. The twin is the same
graphs with every bfloat16 value in float32, over the same weights file: each weight is cast where it is used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from pad_runtime.bundle.file_info import describe_file
from pad_runtime.bundle.manifest import Manifest, write_manifest


@contextmanager
def float32_twin(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """A temporary bundle beside `folder`: its float32 twin, which shares all files but graphs and manifest with it."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".twin", dir=folder.parent) as temporary:
        twin = Path(temporary) / "bundle"
        shutil.copytree(folder, twin, copy_function=_link)
        files = dict(manifest.files)
        for graph in manifest.graphs.values():
            path = twin / graph.file
            path.unlink()  # a hard link to the bundle's own file
            onnx.save_model(widen(onnx.load(folder / graph.file, load_external_data=False)), path)
            files[graph.file] = describe_file(path)
        write_manifest(twin, replace(manifest, float_type="float32", files=files))
        yield twin


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """Change a model in place, so that it computes in float32 what it computed in bfloat16.

    input (bfloat16) -> node   becomes   input (float32) -> node
    weight -> node             becomes   weight -> Cast -> node
    """
    graph = model.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    weights = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.BFLOAT16]
    wide = {name: f"{name}/float32" for name in weights}
    casts = [
        helper.make_node("Cast", [name], [output], name=output, to=TensorProto.FLOAT) for name, output in wide.items()
    ]
    nodes = list(graph.node)
    for node in nodes:
        node.input[:] = [wide.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(casts + nodes)
    return model


def _link(source: str, target: str) -> None:
    """Make a hard link, or a copy if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

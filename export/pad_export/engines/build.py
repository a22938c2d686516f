"""One builder of engines for TensorRT 10 and 11 (`tensorrt`) and for TensorRT-RTX (`tensorrt_rtx`): the same API.

TensorRT times kernels on the GPU of this machine, and builds for that GPU. TensorRT-RTX builds on any machine, for the
compute capabilities that are named, and compiles the rest on the GPU at first use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pad_export.engines.profile import Range, make_profiles
from pad_export.engines.report import EngineReport
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import EngineInfo, Manifest
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.devices.cuda import find_cuda
from pad_runtime.devices.tensorrt.engine_choice import this_platform
from pad_runtime.devices.tensorrt.library import load_tensorrt, make_log
from pad_runtime.errors import EngineError, OptionError


class EngineBuilder:
    """Builds engines of one kind."""

    def __init__(
        self,
        target: contract.EngineTarget,
        compute_capabilities: Sequence[str] = (),
        *,
        timing_cache: Path | None = None,
        dedicated_attention: bool = False,
    ) -> None:
        """Load the library and check the options.

        Args:
            target: the library.
            compute_capabilities: GPUs that a TensorRT-RTX engine is for, such as "sm89"; TensorRT takes the one here.
            timing_cache: where TensorRT keeps what it timed, for the next build; TensorRT-RTX times nothing.
            dedicated_attention: refuse a graph whose attention the library has no dedicated kernel for. By default it
                is written out there.

        Raises:
            EngineError: the library is not installed, or cannot be loaded.
            OptionError: the library does not take these compute capabilities or a timing cache.
            DeviceError: the target is TensorRT, and this machine has no GPU.
        """
        self.target = target
        self._trt = load_tensorrt(target)
        self._timing_cache = timing_cache
        self._dedicated_attention = dedicated_attention
        self.version = str(self._trt.__version__)
        if target == "tensorrt":
            if compute_capabilities:
                raise OptionError(
                    f"--compute-capability {compute_capabilities[0]} with --target tensorrt, which builds for this GPU",
                    hint="leave it out, or pass --target tensorrt-rtx",
                )
            self.compute_capabilities = [find_cuda().gpu().compute_capability]
            return
        if timing_cache is not None:
            raise OptionError("--timing-cache with --target tensorrt-rtx, which times nothing", hint="leave it out")
        known = [name.lower() for name in self._trt.ComputeCapability.__members__ if name.startswith("SM")]
        unknown = [f"--compute-capability {name}" for name in compute_capabilities if name not in known]
        if unknown or not compute_capabilities:
            raise OptionError(
                f"{unknown[0] if unknown else 'no --compute-capability'} with --target tensorrt-rtx",
                expected=f"one or more of {', '.join(sorted(known, key=lambda name: int(name[2:])))}",
            )
        self.compute_capabilities = list(dict.fromkeys(compute_capabilities))

    def build(self, folder: Path, manifest: Manifest, graph: str, engine: Path) -> tuple[EngineInfo, EngineReport]:
        """Build an engine of one graph of a bundle.

        Args:
            folder: the bundle.
            manifest: of the bundle.
            graph: `contract.STEP_GRAPH` or `contract.BASE_GRAPH`.
            engine: file to write.

        Raises:
            EngineError: the library refuses the graph, or the engine is not one piece with its caches in place.
        """
        trt, path = self._trt, folder / manifest.graphs[graph].file
        profiles = make_profiles(folder, manifest, graph)
        model = _fix_capacity(onnx.load(path, load_external_data=False), manifest.max_length)
        if self.target == "tensorrt-rtx" and graph == contract.STEP_GRAPH:
            run_in_turn(model, manifest)
        start = time.perf_counter()
        listed: list[str] = []  # the builder's description of the finished engine
        log = make_log(trt, lambda message: listed.append(message) if message.startswith("Layers:") else None)
        builder = trt.Builder(log)
        strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(strongly_typed)
        parser = trt.OnnxParser(network, log)
        if not parser.parse(model.SerializeToString(), str(path)):
            error = parser.get_error(parser.num_errors - 1)
            raise EngineError(
                f"{self.target} {self.version} cannot read {error.node_operator()} {error.node_name()} of {path}: "
                f"{log.take() if log.errors else error.desc()}",
                hint=f"install a newer {self.target}",
            )
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the layers keep their names in the graph
        if not self._dedicated_attention:
            _allow_decomposition(trt, network)
        if self.target == "tensorrt-rtx":
            config.num_compute_capabilities = len(self.compute_capabilities)
            for index, name in enumerate(self.compute_capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
        for axes in profiles.values():
            config.add_optimization_profile(_make_profile(builder, network, model, axes))
        timings = self._read_timings(config)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(
                f"{self.target} {self.version} cannot build {path}: {log.take()}", hint="try another --precision"
            )
        engine.write_bytes(memoryview(plan))
        if self._timing_cache is not None:
            self._keep_timings(self._timing_cache, bytes(memoryview(timings.serialize())))
        report = EngineReport.of(
            network, listed[-1] if listed else "", size=plan.nbytes, seconds=time.perf_counter() - start
        )
        report.check(cache_pairs(manifest, graph))
        info = EngineInfo(
            file=engine.name,
            graph=graph,
            target=self.target,
            version=self.version,
            platform=this_platform(),
            compute_capabilities=self.compute_capabilities,
            profiles={name: {axis: list(sizes) for axis, sizes in axes.items()} for name, axes in profiles.items()},
        )
        return info, report

    def _read_timings(self, config: Any) -> Any:
        if self._timing_cache is None:
            return None
        try:
            known = self._timing_cache.read_bytes() if self._timing_cache.exists() else b""
        except OSError as error:
            raise OptionError(
                f"--timing-cache {self._timing_cache} cannot be read: {error.strerror}", hint="choose another file"
            ) from None
        timings = config.create_timing_cache(known)
        config.set_timing_cache(timings, ignore_mismatch=False)
        return timings

    @staticmethod
    def _keep_timings(path: Path, timings: bytes) -> None:
        try:
            write_whole(path, timings)
        except OSError as error:
            raise OptionError(
                f"--timing-cache {path} cannot be written: {error.strerror}", hint="choose another file"
            ) from None


def cache_pairs(manifest: Manifest, graph: str) -> dict[str, str]:
    """KV outputs of a graph, each with the input whose memory it shares."""
    pairs = {}
    for trunk in manifest.trunks if graph == contract.STEP_GRAPH else manifest.trunks[:1]:
        at = contract.trunk_prefix(trunk.name)
        for layer in range(trunk.num_layers):
            pairs[at + contract.present_key(layer)] = at + contract.past_key(layer)
            pairs[at + contract.present_value(layer)] = at + contract.past_value(layer)
    return pairs


def _fix_capacity(model: onnx.ModelProto, capacity: int) -> onnx.ModelProto:
    """Set the capacity axis of the KV caches to one size."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == contract.CAPACITY:
                dim.dim_value = capacity
    return model


def run_in_turn(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Let each trunk start from the end of the one before: side by side they crash TensorRT-RTX 1.7.1's compiler.

    ids -> embed -> ..   becomes   ids -> embed -> + <- 0 * max(last hidden state of the trunk before) -> ..
    """
    before, *others = [contract.trunk_prefix(trunk.name) for trunk in manifest.trunks]
    zero = numpy_helper.from_array(np.zeros((), manifest.float_type), "in_turn/nothing")
    model.graph.initializer.append(zero)
    nodes = list(model.graph.node)
    for at in others:
        place = next(index for index, node in enumerate(nodes) if node.name == f"{at}embed")
        nodes[place].output[0], name = f"{at}in_turn/embed", nodes[place].output[0]
        nodes[place + 1 : place + 1] = [
            helper.make_node(
                "ReduceMax", [f"{before}last_hidden"], [f"{at}in_turn/end"], f"{at}in_turn/end", keepdims=0
            ),
            helper.make_node("Mul", [f"{at}in_turn/end", zero.name], [f"{at}in_turn/zero"], f"{at}in_turn/zero"),
            helper.make_node("Add", [f"{at}in_turn/embed", f"{at}in_turn/zero"], [name], f"{at}in_turn"),
        ]
        before = at
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _make_profile(builder: Any, network: Any, model: onnx.ModelProto, axes: dict[str, Range]) -> Any:
    profile = builder.create_optimization_profile()
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:  # top_k: its value sizes others
            profile.set_shape_input(tensor.name, *((size,) for size in axes[contract.K]))
            continue
        sizes = [axes[dim.dim_param] if dim.dim_param else (dim.dim_value,) * 3 for dim in shapes[tensor.name]]
        profile.set_shape(tensor.name, *zip(*sizes, strict=True))
    return profile


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Let attention be written out where the library has no dedicated kernel for it; where it has one, it takes that.

    Otherwise it refuses graphs in float32, and with few or small attention heads.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer  # as TensorRT's Python interface narrows a layer
            layer.attention.decomposable = True

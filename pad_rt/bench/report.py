"""`pad bench`: everything that it measures of a bundle, as a page or as JSON."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pad_rt.bench.fresh_start import FreshStart, measure_fresh_start
from pad_rt.bench.graph_weights import GraphWeights
from pad_rt.bench.machine import cpu_name, num_cores, read_bandwidth
from pad_rt.bench.rounds import Spread, compare
from pad_rt.bench.steps import Workload, measure_replies, measure_steps, open_bundle, settling
from pad_rt.generator import Generator
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import RowPlan

_MIB = 2**20
_LABEL_WIDTH = 14


@dataclass(frozen=True)
class BenchReport:
    """What a bundle costs here. Times in milliseconds unless a name says otherwise; sizes in bytes.

    Attributes:
        folder: the bundle.
        manifest: the bundle's manifest.
        workload: what was decoded.
        base, pad: steps of the base alone and guided ones, which took turns.
        ratios: guided over plain, step by step.
        prefill: median time of a guided prefill.
        tokens_per_s: median speed of a guided reply after its first token.
        host_us: median microseconds a token outside the graph.
        bytes_to_host: bytes read back from the device for each token.
        fresh: first token and peak memory of a new process.
        num_rows: rows of a guided step over all trunks.
        weight_bytes: weights of the guided graph, with its adapters and heads.
        kv_bytes: KV cache of all rows at the end of a reply.
        read_bytes: weights that a step of the base reads.
        bandwidths: GB/s that NumPy reads, by number of threads; None if its buffer does not fit into memory.
        device: the device that ran the bundle.
        num_threads: as asked for; None: the physical cores.
    """

    folder: Path
    manifest: Manifest
    workload: Workload
    base: Spread
    pad: Spread
    ratios: Spread
    prefill: float
    tokens_per_s: float
    host_us: float
    bytes_to_host: int
    fresh: FreshStart
    num_rows: int
    weight_bytes: int
    kv_bytes: int
    read_bytes: int
    bandwidths: dict[int, float | None]
    device: str
    num_threads: int | None

    @classmethod
    def measure(
        cls,
        folder: Path,
        workload: Workload,
        *,
        device: str = "auto",
        num_threads: int | None = None,
        report: Callable[[str], object] = lambda _: None,
    ) -> BenchReport:
        """Measure a bundle; `report` gets a line about each stage.

        Raises:
            BundleError, DeviceError: the bundle or the device cannot be used.
            OptionError: the bundle cannot run this workload.
            OutOfMemoryError: weights or KV cache do not fit.
        """
        bundle = open_bundle(folder, device=device, num_threads=num_threads)
        manifest = bundle.manifest
        workload.check(manifest)
        report("a fresh process")
        fresh = measure_fresh_start(folder, manifest, workload, device=device, num_threads=num_threads)
        report("memory bandwidth")
        threads = num_threads or num_cores()
        bandwidths = {count: read_bandwidth(count) for count in sorted({1, threads})}
        report("steps of the base and guided steps in turn")
        plan = workload.plan(manifest, guided=True)
        sides = {name: workload.decoding(bundle, guided=name == "pad") for name in ("base", "pad")}
        times = measure_steps(sides, workload, settle=settling(bundle))
        sides.clear()  # their KV caches go before the next ones come
        report("replies")
        replies = measure_replies(Generator(bundle), workload)
        return cls(
            folder=folder,
            manifest=manifest,
            workload=workload,
            base=Spread.of(times.step["base"]),
            pad=Spread.of(times.step["pad"]),
            ratios=compare(times.step["pad"], times.step["base"]),
            prefill=statistics.median(times.prefill["pad"]),
            tokens_per_s=statistics.median(replies.tokens_per_s),
            host_us=statistics.median(replies.host_us),
            bytes_to_host=replies.bytes_to_host_per_token,
            fresh=fresh,
            num_rows=len(plan.rows),
            weight_bytes=_weight_bytes(bundle),
            kv_bytes=_kv_bytes(manifest, plan, workload.new_tokens + 1),
            read_bytes=GraphWeights.of(folder / manifest.graphs[contract.BASE_GRAPH].file).read,
            bandwidths=bandwidths,
            device=bundle.provider.device,
            num_threads=num_threads,
        )

    @property
    def ratio(self) -> float:
        """Median guided step over median plain step."""
        return self.pad.p50 / self.base.p50

    @property
    def read_gb_s(self) -> float:
        """GB/s (10^9 bytes) of weights that a plain step reads."""
        return self.read_bytes / self.base.p50 / 1e6

    @property
    def net_mib(self) -> float | None:
        """Peak memory less that of the interpreter and its libraries."""
        fresh = self.fresh
        if fresh.peak_rss_mib is None or fresh.before_load_mib is None:
            return None
        return fresh.peak_rss_mib - fresh.before_load_mib

    @property
    def private_mib(self) -> float | None:
        """Memory without pages of files after a reply, less that of the interpreter and its libraries."""
        fresh = self.fresh
        if fresh.private_mib is None or fresh.before_load_private_mib is None:
            return None
        return fresh.private_mib - fresh.before_load_private_mib

    def _to_weights_and_kv(self, mib: float | None) -> float | None:
        return None if mib is None else mib * _MIB / (self.weight_bytes + self.kv_bytes)

    def as_dict(self) -> dict[str, Any]:
        """The same as an object for JSON."""
        record: dict[str, Any] = {
            "base_step_ms": {"p50": self.base.p50, "p95": self.base.p95},
            "pad_step_ms": {"p50": self.pad.p50, "p95": self.pad.p95},
            "ratio": {"of_medians": self.ratio, **{name: getattr(self.ratios, name) for name in ("p25", "p50", "p75")}},
            "prefill_ms": self.prefill,
            "first_token_ms": self.fresh.first_token_ms,
            "first_token_from_process_start_ms": self.fresh.from_start_ms,
            "tokens_per_s": self.tokens_per_s,
            "host_us_per_token": self.host_us,
            "bytes_to_host_per_token": self.bytes_to_host,
            "peak_rss_mib": self.fresh.peak_rss_mib,
            "memory": {
                "before_load_mib": self.fresh.before_load_mib,
                "net_peak_mib": self.net_mib,
                "weights_mib": self.weight_bytes / _MIB,
                "kv_cache_mib": self.kv_bytes / _MIB,
                "net_peak_to_weights_and_kv": self._to_weights_and_kv(self.net_mib),
                "private_mib": self.private_mib,
                "private_to_weights_and_kv": self._to_weights_and_kv(self.private_mib),
            },
            "read_gb_s": {
                "base_step": self.read_gb_s,
                "weights_mib": self.read_bytes / _MIB,
                "machine": {str(threads): speed for threads, speed in self.bandwidths.items()},
            },
            "ran_on": {
                "cpu": cpu_name(),
                "cores": num_cores(),
                "system": platform.system(),
                "python": platform.python_version(),
                "onnxruntime": version_of_onnxruntime(),
                "pad_rt": version("pad-rt"),
                "device": self.device,
                "threads": self.num_threads,
                "precision": self.manifest.precision,
                "topology": self.manifest.topology,
                "rows": self.num_rows,
                "top_k": self.workload.top_k,
                "prompt": "random token ids (EncodedPrompt)",
                "prompt_tokens": self.workload.prompt_tokens,
                "reward_prompt_tokens": self.workload.reward_tokens(self.manifest),
                "new_tokens": self.workload.new_tokens,
                "rounds": self.workload.rounds,
            },
        }
        return {name: _rounded(value) for name, value in record.items()}

    def as_text(self) -> str:
        """The same as a page for a terminal."""
        manifest, work, fresh = self.manifest, self.workload, self.fresh
        threads = _count(self.num_threads, "thread") if self.num_threads else "threads: the physical cores"
        machine = ", ".join(
            f"{'not measured' if speed is None else f'{speed:.1f}'} with {_count(threads, 'thread')}"
            for threads, speed in self.bandwidths.items()
        )
        lines = [
            _line("bundle", f"{self.folder}: {manifest.topology}, {manifest.precision}, {self.num_rows} rows a step"),
            _line("machine", f"{cpu_name()}, {_count(num_cores(), 'core')}"),
            _line("", f"onnxruntime {version_of_onnxruntime()} on {self.device}, {threads}"),
            _line(
                "decoded",
                f"random token ids, {work.prompt_tokens} (base) and {work.reward_tokens(manifest)} (reward) of prompt,",
            ),
            _line("", f"{_count(work.rounds, 'round')} of {work.new_tokens} tokens, k {work.top_k}, batch 1, greedy"),
            "",
            _line("base step", f"{_ms(self.base.p50)} median, {_ms(self.base.p95)} at the 95th percentile"),
            _line("PAD step", f"{_ms(self.pad.p50)} median, {_ms(self.pad.p95)} at the 95th percentile"),
            _line(
                "PAD / base",
                f"{self.ratio:.2f} of medians, quartiles {self.ratios.p25:.2f} to {self.ratios.p75:.2f}, in turn",
            ),
            _line("speed", f"{self.tokens_per_s:.1f} tokens/s guided, after the first"),
            _line("prefill", f"{_ms(self.prefill)} guided"),
            _line(
                "first token", f"{_ms(fresh.first_token_ms)} after Generator.load, in a fresh process on a warm disk"
            ),
            _line("", f"{_ms(fresh.from_start_ms)} after the start of that process"),
            _line("host", f"{self.host_us:.0f} us and {self.bytes_to_host} bytes a token outside the graph"),
            *self._describe_memory(),
            _line("weights read", f"{self.read_gb_s:.1f} GB/s in a base step; NumPy reads {machine}"),
        ]
        return "\n".join(lines)

    def _describe_memory(self) -> list[str]:
        sizes = f"weights {self.weight_bytes / _MIB:.0f} and KV cache {self.kv_bytes / _MIB:.0f} MiB"
        if self.net_mib is None:
            return [_line("memory", f"{sizes}; this system does not tell the peak")]
        peak = (
            f"{self.fresh.peak_rss_mib:.0f} MiB peak, {self.net_mib:.0f} without the interpreter: "
            f"{self._to_weights_and_kv(self.net_mib):.2f} times {sizes}"
        )
        lines = [_line("memory", peak)]
        if self.private_mib is not None:
            times = f"{self._to_weights_and_kv(self.private_mib):.2f} times"
            lines.append(
                _line("", f"{self.private_mib:.0f} MiB its own after a reply, without pages of files: {times}")
            )
        return lines


def version_of_onnxruntime() -> str:
    """Version of the onnxruntime that is imported, whichever package it came with."""
    import onnxruntime

    return str(onnxruntime.__version__)


def _weight_bytes(bundle: Bundle) -> int:
    """The guided graph's weights, and the adapter and head of the PersRM that the workload calls on."""
    manifest = bundle.manifest
    graph = GraphWeights.of(bundle.folder / manifest.graphs[contract.STEP_GRAPH].file)
    inputs = [name for name in (manifest.persrms[0].adapter, manifest.persrms[0].feature_head) if name]
    return graph.stored + sum(manifest.files[name].size for name in inputs)


def _kv_bytes(manifest: Manifest, plan: RowPlan, new_tokens: int) -> int:
    """Keys and values of prompt and reply: of each prompt on layers that run by prompt, of each row on the others."""
    lengths = [plan.longest + new_tokens] * len(plan.prompts)
    numbers = sum(
        2 * int(plan.cached_positions(index, trunk, lengths)) * trunk.num_kv_heads * trunk.head_dim
        for index, trunk in enumerate(manifest.trunks)
    )
    return numbers * manifest.dtype.itemsize


def _rounded(value: Any) -> Any:
    """Numbers to four significant digits, at any depth."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}{text}"


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

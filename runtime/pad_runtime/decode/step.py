"""One decode step: the compiled seam between the loop and the graph.

After `prefill`, everything the graph reads and writes is bound: the KV cache to itself, and the small state (next
input ids, lengths, step count) between two sets of buffers that take turns. `step` runs one of two ready bindings and
returns a view of the chosen ids: 8 bytes a sequence, and nothing else comes back to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.bank import AdapterBank
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.cancellation import Cancellation, run_interruptibly
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.ids import BYTES_PER_ID
from pad_runtime.devices.provider import Graph, Provider
from pad_runtime.errors import CancelledError, OutOfMemoryError
from pad_runtime.rows.row import Row, TrunkPrompts

Array = npt.NDArray[Any]
# KV slots are allocated in blocks, so that requests of like length share one cache; a new one is captured anew.
_CAPACITY_BLOCK, _CAPTURED_CAPACITY_BLOCK = 64, 256
_NOISE_BLOCK = 256  # steps
_END_OFFERED = 1e9  # beyond the logits of any model
_KEEP_ALL = 2.0  # top_p of 1: mass sums to 1 only up to rounding, so the limit is put out of reach


@dataclass(frozen=True)
class StepRequest:
    """A batch to decode.

    Attributes:
        sequences: rows of each sequence by trunk, equally many in each sequence (`rows.pad_rows`).
        max_new_tokens: tokens the KV cache must have room for beyond the prompts.
        top_k: candidates, offered ends of the turn among them.
        temperature: 0 is greedy.
        top_p: mass of the candidates that are kept.
        seeds: one for each sequence, for its noise.
        offer_end: the ends of the turn are candidates at every step, whatever the base thinks of them.
        trace: also fetch candidates, row logits and scores of every step.
    """

    sequences: list[list[list[Row]]]
    max_new_tokens: int
    top_k: int
    temperature: float
    top_p: float
    seeds: tuple[int, ...]
    offer_end: bool = False
    trace: bool = False

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the PersRMs that any row wears, ascending."""
        rows = (row for sequence in self.sequences for trunk in sequence for row in trunk)
        return tuple(sorted({row.persrm for row in rows if row.persrm is not None}))


@dataclass(frozen=True)
class StepTrace:
    """What one step weighed: candidates [batch, k] int64, row_logits [batch, rows, k] and scores [batch, k] float32."""

    candidates: Array
    row_logits: Array
    scores: Array


class Step(Protocol):
    """A stateful decoder: prompts in, one id a sequence and step out.

    Attributes:
        bytes_to_host: bytes that come back from the device at every step, for the whole batch.
        ahead: whether the device runs a step while the host has the ids of the one before.
    """

    bytes_to_host: int

    @property
    def ahead(self) -> bool:
        """Whether the device runs ahead."""

    def prefill(self, request: StepRequest, cancellation: Cancellation | None = None) -> Sequence[int]:
        """Read the prompts, forget what came before, return the first ids (a view that the next step overwrites).

        Raises:
            CancelledError: another thread wanted the end; Ctrl-C in the main thread raises KeyboardInterrupt.
        """

    def step(self) -> Sequence[int]:
        """Take the ids just chosen as input and return the next ones."""

    def trace(self) -> StepTrace:
        """What the last step weighed; only after a request that asked for it."""


class GraphStep:
    """`Step` on a graph, whatever runs it."""

    def __init__(self, graph: Graph, manifest: Manifest, bank: AdapterBank, provider: Provider) -> None:
        self._graph, self._manifest, self._bank = graph, manifest, bank
        self._memory, self._captures = provider.memory, provider.freezes_host_inputs
        self._input_names = [value.name for value in graph.inputs]
        self._output_names = [value.name for value in graph.outputs]
        self._trunks = [
            (index, trunk, contract.trunk_prefix(trunk.name))
            for index, trunk in enumerate(manifest.trunks)
            if contract.trunk_prefix(trunk.name) + contract.INPUT_IDS in self._input_names
        ]
        self._values: dict[str, Buffer] = {}  # bound for every step
        self._turns: tuple[dict[str, Buffer], dict[str, Buffer]] = ({}, {})  # state, by input name
        self._trace: dict[str, Buffer] = {}
        self._heads: dict[str, Array] = {}  # feature heads, as they were put last
        self._prefill: object = None
        self._runs: list[Callable[[], object]] = []  # on either set of state buffers, and the ids are read
        self._capacity = 0
        self._widths: list[tuple[int, int]] = []  # prompts and rows that the caches are for, by trunk
        self._stale = True  # a bound buffer was replaced since the runs were made
        self._turn = 0
        self._ids = self._memory.ids(1)
        self._take = self._ids.take
        self.bytes_to_host = BYTES_PER_ID  # per step

    # -- the three calls of the loop ----------------------------------------------------------------------------------

    def prefill(self, request: StepRequest, cancellation: Cancellation | None = None) -> Sequence[int]:
        """Read right-padded prompts of any lengths into the cache and choose the first token of each sequence.

        Ctrl-C and `cancellation` end it before the graph's next operator.
        """
        cancellation = cancellation or Cancellation()
        self._ids.forget()
        batch = len(request.sequences)
        read = [TrunkPrompts.of(request.sequences, index) for index, _, _ in self._trunks]
        longest = max(len(prompt) for trunk in read for prompt in trunk.prompts)
        self._reserve(read, longest + request.max_new_tokens)
        self._put_request(request, read, batch)
        prefill: dict[str, Buffer] = {}
        for (_, _, at), trunk in zip(self._trunks, read, strict=True):
            ids, lengths = _pad(trunk.prompts)
            prefill[at + contract.INPUT_IDS] = self._memory.upload(ids)
            prefill[at + contract.SEQLENS_K] = self._memory.upload((lengths - 1).astype(np.int32))
            prefill[at + contract.LAST_TOKEN] = self._memory.upload((lengths - 1)[:, None])
            length = np.array(ids.shape[1], np.int32)
            prefill[at + contract.TOTAL_SEQUENCE_LENGTH] = self._memory.upload(length, host=True)
        prefill[contract.STEP] = self._memory.upload(np.zeros(1, np.int64))
        fresh = self._stale
        if fresh:
            turns = self._turns
            self._runs = [self._bind(turns[turn], turns[1 - turn], repeated=True) for turn in (0, 1)]
            self._stale = False
        run = self._bind(prefill, self._turns[0], repeated=False, cancellation=cancellation)
        self._prefill = (prefill, run)  # kept until the next one: to free them is to wait for the device
        try:
            if self._ids.ahead:  # the run is put on the device's stream and returns at once
                run()
            else:
                run_interruptibly(run, cancellation)
        except Exception as error:  # ONNX Runtime's own exceptions have no base of their own
            if cancellation.is_wanted:
                raise _cancelled() from None
            if "alloc" in str(error).lower():
                raise OutOfMemoryError(
                    f"no memory to read prompts of {longest} tokens", hint="use shorter prompts or a smaller batch"
                ) from None
            raise
        if cancellation.is_wanted:
            raise _cancelled()
        self._turn = 0
        if not self._ids.ahead or request.trace:
            return self._take()
        # From here on the device is one step ahead; the first ids do not wait for a capture, which takes its time.
        if not fresh:
            self._run_ahead()
            return self._take()
        first = self._take()
        self._run_ahead()
        return first

    def _run_ahead(self) -> None:
        self._runs[0]()
        self._turn = 1

    def step(self) -> Sequence[int]:
        """One token for every sequence: a run that is ready, and nothing else."""
        self._runs[self._turn]()
        self._turn ^= 1
        return self._take()

    def trace(self) -> StepTrace:
        """Copies of what the last step weighed."""
        return StepTrace(*(self._trace[name].read() for name in contract.TRACE_OUTPUTS))

    def cache(self, trunk: int, layer: int) -> tuple[Array, Array]:
        """Copies of one layer's key and value cache: [N or R, kv_heads, capacity, head_dim]. For verification."""
        at = self._trunks[trunk][2]
        names = (at + contract.past_key(layer), at + contract.past_value(layer))
        return self._values[names[0]].read(), self._values[names[1]].read()

    @property
    def ahead(self) -> bool:
        """Whether the device runs a step while the host has the ids of the one before."""
        return self._ids.ahead

    def __del__(self) -> None:
        """Let the device end what it is doing, before buffers go."""
        if hasattr(self, "_ids"):
            self._ids.forget()

    # -- buffers ------------------------------------------------------------------------------------------------------

    def _reserve(self, read: Sequence[TrunkPrompts], length: int) -> None:
        """Make the KV cache and the alternating state, unless those of the last request serve."""
        block = _CAPTURED_CAPACITY_BLOCK if self._captures else _CAPACITY_BLOCK
        needed = self._graph.capacity or min(-(-length // block) * block, self._manifest.max_length)
        widths = [(len(trunk.prompts), len(trunk.rows)) for trunk in read]
        if self._widths == widths and self._capacity >= needed:
            return
        for name in [name for name in self._values if "past_key_values." in name]:
            del self._values[name]  # the old cache goes before the new one comes
        self._runs, self._stale, self._capacity, self._widths = [], True, needed, []
        for (_, trunk, at), (prompts, rows) in zip(self._trunks, widths, strict=True):
            for layer in range(trunk.num_layers):
                width = prompts if layer < trunk.prompt_layers else rows
                shape = (width, trunk.num_kv_heads, needed, trunk.head_dim)
                for name in (contract.past_key(layer), contract.past_value(layer)):
                    self._values[at + name] = self._memory.zeros(shape, self._bank.float_type)
            for turn in self._turns:
                turn[at + contract.INPUT_IDS] = self._memory.zeros((prompts, 1), np.int64)
                turn[at + contract.SEQLENS_K] = self._memory.zeros((prompts,), np.int32)
            self._put(at + contract.LAST_TOKEN, np.zeros((prompts, 1), np.int64))
            self._put(at + contract.TOTAL_SEQUENCE_LENGTH, np.array(needed, np.int32))
        for turn in self._turns:
            turn[contract.STEP] = self._memory.zeros((1,), np.int64)
        self._put(contract.MAX_POSITION, np.array([needed - 1], np.int32))
        self._widths = widths

    def _put_request(self, request: StepRequest, read: Sequence[TrunkPrompts], batch: int) -> None:
        """Upload what a request sets once: coefficients, choice, noise, adapters, and where ids and trace land."""
        coefficients = [[row.coefficient for trunk in rows for row in trunk] for rows in request.sequences]
        k = request.top_k
        top_p = request.top_p if request.top_p < 1.0 else _KEEP_ALL
        self._put(contract.COEFFICIENTS, np.array(coefficients, np.float32))
        self._put(contract.TOP_K, np.array([k], np.int64))
        self._put(contract.TEMPERATURE, np.full((batch, 1), request.temperature, np.float32))
        self._put(contract.TOP_P, np.full((batch, 1), top_p, np.float32))
        noise = draw_noise(request, self._manifest.max_length)
        self._put(contract.NOISE, noise)
        self._put(contract.LAST_NOISE, np.array([len(noise) - 1], np.int64))
        for (_, _, at), trunk in zip(self._trunks, read, strict=True):
            self._put(at + contract.PROMPT_SEQUENCE, np.array(trunk.sequences, np.int64)[:, None])
            self._put(at + contract.ROW_PROMPT, np.array(trunk.rows, np.int64))
        if contract.END_BONUS in self._input_names:
            self._put(contract.END_BONUS, np.array([_END_OFFERED if request.offer_end else 0.0], np.float32))
        if contract.COEFFICIENTS in self._input_names:
            active = request.active
            for name, array in self._bank.row_inputs(active, request.sequences).items():
                self._put(name, array)
            for name, value in self._bank.factors(active).items():
                self._stale |= self._values.get(name) is not value
                self._values[name] = value
            for name, array in self._bank.heads(active, request.sequences).items():
                if self._heads.get(name) is not array:  # no new buffer: another person's mix needs no new runs
                    self._put(name, array)
                    self._heads[name] = array
        if self.bytes_to_host != batch * BYTES_PER_ID:
            self._ids = self._memory.ids(batch)
            self._take = self._ids.take
            self.bytes_to_host, self._stale = batch * BYTES_PER_ID, True
        trace = {}
        if request.trace:
            rows = len(coefficients[0])
            for name, shape, dtype in zip(
                contract.TRACE_OUTPUTS,
                ((batch, k), (batch, rows, k), (batch, k)),
                (np.int64, np.float32, np.float32),
                strict=True,
            ):
                trace[name] = self._memory.zeros(shape, dtype)
        self._stale |= bool(trace or self._trace)
        self._trace = trace

    def _put(self, name: str, array: Array) -> None:
        """Set an input: in place where its buffer has that shape, so that the runs stay good.

        A captured step has read its host inputs for good: another value of one makes the runs stale.
        """
        buffer = self._values.get(name)
        on_host = name.rpartition(".")[2] in self._graph.host_inputs
        if buffer is None or buffer.shape != array.shape:
            # A copy: on a host a buffer is the array's own memory, and this one will be written to.
            self._values[name], self._stale = self._memory.upload(array.copy(), host=on_host), True
            return
        if on_host and self._captures:
            self._stale |= not np.array_equal(buffer.read(), array)
        buffer.write(array)

    def _bind(
        self,
        state: dict[str, Buffer],
        next_state: dict[str, Buffer],
        *,
        repeated: bool,
        cancellation: Cancellation | None = None,
    ) -> Callable[[], object]:
        """A run that reads `state` and writes `next_state`, and whose ids can be taken."""
        inputs = {name: state[name] if name in state else self._values[name] for name in self._input_names}
        outputs: dict[str, Buffer] = {contract.NEXT_IDS: self._ids.buffer, **self._trace}
        outputs[contract.NEXT_STEP] = next_state[contract.STEP]
        for _, trunk, at in self._trunks:
            outputs[at + contract.NEXT_INPUT_IDS] = next_state[at + contract.INPUT_IDS]
            outputs[at + contract.NEXT_SEQLENS_K] = next_state[at + contract.SEQLENS_K]
            for layer in range(trunk.num_layers):
                outputs[at + contract.present_key(layer)] = self._values[at + contract.past_key(layer)]
                outputs[at + contract.present_value(layer)] = self._values[at + contract.past_value(layer)]
        bound = {name: outputs[name] for name in self._output_names if name in outputs}
        return self._ids.bind(self._graph.bind(inputs, bound, repeated=repeated, cancellation=cancellation))


def _cancelled() -> CancelledError:
    return CancelledError("the reading of a prompt was cancelled")


def _pad(prompts: Sequence[tuple[int, ...]]) -> tuple[Array, Array]:
    """Right-padded ids [N, s] and lengths [N], both int64."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    ids = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids, lengths


def draw_noise(request: StepRequest, max_length: int) -> Array:
    """Standard Gumbel noise [n, batch, k] float32, drawn ahead so that a seed gives the same tokens on every provider.

    Each sequence draws from its own seed: it gets the same tokens alone and in a batch. Greedy needs one zero row.
    Otherwise n is rounded up, to `max_length` at most, so that replies of like length share one buffer.
    """
    batch, k = len(request.sequences), request.top_k
    if request.temperature == 0.0:
        return np.zeros((1, batch, k), np.float32)
    steps = min(-(-request.max_new_tokens // _NOISE_BLOCK) * _NOISE_BLOCK, max_length)
    draws = [np.random.Generator(np.random.Philox(seed)).gumbel(size=(steps, k)) for seed in request.seeds]
    return np.stack(draws, axis=1).astype(np.float32)

"""A step graph or a base's own on ONNX Runtime, fed by hand as the contract says, with none of the runtime's code.

Rows, prompts and readings lie in a shuffled order, and what no sequence should look at is filled with what would show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from safetensors.numpy import load_file

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import read_manifest

CAPACITY, NOISE_STEPS = 48, 6  # the last noise is used again after that many steps
LOUD = 1e6  # noise of candidates that a sequence does not have
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class AskedRow:
    """A trunk, the prompt that it reads, and whether it wears the trunk's adapter."""

    trunk: int
    prompt: tuple[int, ...]
    is_adapted: bool = False


@dataclass(frozen=True)
class AskedReading:
    """A row of the sequence, weights of h and each feature (none where the trunk has no features), a coefficient."""

    row: int
    weights: tuple[float, ...]
    coefficient: float


@dataclass(frozen=True)
class Asked:
    """A sequence: its rows, of which the first is the base's, readings of them, and how a token is chosen.

    `history` are the prompt and reply that the controls count; by default the base's prompt, and nothing.
    """

    rows: tuple[AskedRow, ...]
    readings: tuple[AskedReading, ...] = ()
    base_coefficient: float = 1.0
    top_k: int = 5
    temperature: float = 0.0
    top_p: float = 2.0
    min_p: float = 0.0
    end_bonus: float = 0.0
    seed: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: Sequence[int] | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    history: tuple[Sequence[int], Sequence[int]] | None = None

    @property
    def written(self) -> tuple[Sequence[int], Sequence[int]]:
        """Prompt and reply as the controls count them."""
        return self.history or (self.rows[0].prompt, ())

    @property
    def noise(self) -> Array:
        """Of its own candidates, [steps, k]."""
        return np.random.default_rng(self.seed).gumbel(size=(NOISE_STEPS, self.top_k)).astype(np.float32)


class HandFedGraph:
    """A bundle's graph, opened as it is; `exposed` names values inside of it that become outputs."""

    def __init__(self, bundle: Path, graph: str, exposed: Sequence[str] = ()) -> None:
        self.bundle, self.manifest, self.is_guided = bundle, read_manifest(bundle), graph == contract.STEP_GRAPH
        path = bundle / self.manifest.graphs[graph].file
        if exposed:
            model = onnx.load(path, load_external_data=False)
            model.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in exposed
            )
            path = bundle / f"exposed-{path.name}"
            onnx.save_model(model, path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_names = {value.name for value in self.session.get_inputs()}
        self.output_names = [value.name for value in self.session.get_outputs()]

    def run(self, asked: Sequence[Asked], **options: Any) -> HandFedRun:
        """A batch, before its prompts are read."""
        return HandFedRun(self, asked, **options)


class HandFedRun:
    """A batch that is being decoded.

    Args:
        graph: what runs.
        asked: the sequences.
        is_wide: controls are as wide as the vocabulary even where no sequence uses them.
        seed: of the order in which rows, prompts and readings lie.

    Attributes:
        values: what the next step reads, by name; a test may change it.
        readings: (sequence, index of its reading) of every reading, in the order of the trace.
    """

    def __init__(self, graph: HandFedGraph, asked: Sequence[Asked], *, is_wide: bool = False, seed: int = 0) -> None:
        self._graph, self._asked, self._random = graph, asked, np.random.default_rng(seed)
        self.values: dict[str, Array] = {}
        self.readings: list[tuple[int, int]] = []
        self._caches: dict[str, Any] = {}
        trunks = graph.manifest.trunks if graph.is_guided else graph.manifest.trunks[:1]
        for index in range(len(trunks)):
            self._lay_out(index, is_read=graph.is_guided and (index > 0 or len(trunks) == 1))
        self._choice()
        self._controls(is_wide)

    def step(self) -> dict[str, Array]:
        """One token for each sequence: all outputs but the caches, by name."""
        binding = self._graph.session.io_binding()
        for name in self._graph.input_names:
            if name in self._caches:
                binding.bind_ortvalue_input(name, self._caches[name])
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(self.values[name]))
        kept = [name for name in self._graph.output_names if "present." not in name]
        for name in self._graph.output_names:
            if name in kept:
                binding.bind_output(name, "cpu")
            else:
                binding.bind_ortvalue_output(name, self._caches[name.replace("present.", "past_key_values.")])
        self._graph.session.run_with_iobinding(binding)
        found = dict(zip(self._graph.output_names, binding.get_outputs(), strict=True))
        outputs = {name: found[name].numpy() for name in kept}
        for name, value in outputs.items():
            at, _, last = name.rpartition("next_")
            if last and name != contract.NEXT_IDS:
                self.values[at + last] = value
        for name in self.values:
            if name.endswith(contract.LAST_TOKEN):
                self.values[name] = np.zeros_like(self.values[name])
            if name.endswith(contract.TOTAL_SEQUENCE_LENGTH):
                self.values[name] = np.array(CAPACITY, np.int32)
        return outputs

    # -- inputs -------------------------------------------------------------------------------------------------------

    def _lay_out(self, index: int, *, is_read: bool) -> None:
        """What runs on a trunk, each kind of thing in an order of its own."""
        trunk = self._graph.manifest.trunks[index]
        at = contract.trunk_prefix(trunk.name)
        rows = self._shuffled(
            [
                (sequence, number, row)
                for sequence, asked in enumerate(self._asked)
                for number, row in enumerate(asked.rows)
                if row.trunk == index and (self._graph.is_guided or number == 0)
            ]
        )
        prompts = self._shuffled(list(dict.fromkeys((sequence, row.prompt) for sequence, _, row in rows)))
        row_prompt = [prompts.index((sequence, row.prompt)) for sequence, _, row in rows]
        lengths = np.array([len(prompt) for _, prompt in prompts])
        ids = np.full((len(prompts), lengths.max()), 3, np.int64)
        for row_ids, (_, prompt) in zip(ids, prompts, strict=True):
            row_ids[: len(prompt)] = prompt
        values = {
            contract.INPUT_IDS: ids,
            contract.SEQLENS_K: (lengths - 1).astype(np.int32),
            contract.LAST_TOKEN: (lengths - 1)[:, None],
            contract.TOTAL_SEQUENCE_LENGTH: np.array(ids.shape[1], np.int32),
            contract.PROMPT_SEQUENCE: np.array([sequence for sequence, _ in prompts])[:, None],
            contract.ROW_PROMPT: np.array(row_prompt),
        }
        if is_read:
            values |= self._read(index, [(sequence, number) for sequence, number, _ in rows])
        values |= self._adapter(index, [row.is_adapted for _, _, row in rows])
        self.values |= {at + name: value for name, value in values.items()}
        for layer in range(trunk.num_layers):
            by_row = self._graph.is_guided and layer >= trunk.prompt_layers
            shape = (len(rows) if by_row else len(prompts), trunk.num_kv_heads, CAPACITY, trunk.head_dim)
            for name in (contract.past_key(layer), contract.past_value(layer)):
                noise = self._random.normal(size=shape).astype(np.float32)  # of whoever was there before
                self._caches[at + name] = ort.OrtValue.ortvalue_from_numpy(noise)
        if index == 0:
            places = {sequence: place for place, (sequence, number, _) in enumerate(rows) if number == 0}
            base = [places[sequence] for sequence in range(len(self._asked))]
            self.values[contract.BASE_ROW] = np.array(base if self._graph.is_guided else [row_prompt[b] for b in base])

    def _read(self, index: int, rows: Sequence[tuple[int, int]]) -> dict[str, Array]:
        """The readings of a trunk's rows, which are (sequence, its row)."""
        readings = self._shuffled(
            [
                (sequence, number)
                for sequence, asked in enumerate(self._asked)
                for number, reading in enumerate(asked.readings)
                if asked.rows[reading.row].trunk == index
            ]
        )
        self.readings += readings
        taken = [self._asked[sequence].readings[number] for sequence, number in readings]
        sequences = [sequence for sequence, _ in readings]
        coefficients = np.zeros((len(self._asked), len(readings)), np.float32)
        coefficients[sequences, range(len(readings))] = [reading.coefficient for reading in taken]
        before = self.values.get(contract.COEFFICIENTS, coefficients[:, :0])
        self.values[contract.COEFFICIENTS] = np.concatenate([before, coefficients], axis=1)
        values = {
            contract.READING_ROW: np.array(
                [rows.index((sequence, reading.row)) for sequence, reading in zip(sequences, taken, strict=True)]
            ),
            contract.READING_SEQUENCE: np.array(sequences),
        }
        if self._graph.manifest.trunks[index].has_features:
            values[contract.READING_WEIGHTS] = np.array([reading.weights for reading in taken], np.float32)
        return values

    def _adapter(self, index: int, is_adapted: Sequence[bool]) -> dict[str, Array]:
        """Factors, gates and heads of the trunk's only PersRM."""
        manifest = self._graph.manifest
        trunk = manifest.trunks[index]
        values: dict[str, Array] = {}
        if not self._graph.is_guided:
            return values
        for persrm in manifest.persrms:
            if persrm.trunk == trunk.name and persrm.adapter:
                values |= load_file(self._graph.bundle / persrm.adapter)
                for site in trunk.lora_sites:
                    rank = values[contract.lora_a(trunk.prompt_layers, site)].shape[1]
                    gate = np.array(is_adapted, np.float32)[:, None, None]
                    values[contract.lora_gate(site)] = np.repeat(gate, rank, axis=2)
            if persrm.trunk == trunk.name and persrm.feature_head:
                head = load_file(self._graph.bundle / persrm.feature_head)
                values |= {contract.FEATURE_HEADS: head["heads"], contract.FEATURE_BIASES: head["biases"]}
        return values

    def _choice(self) -> None:
        asked, most = self._asked, max(each.top_k for each in self._asked)
        noise = np.full((len(asked), NOISE_STEPS, most), LOUD, np.float32)
        for own, each in zip(noise, asked, strict=True):
            own[:, : each.top_k] = each.noise
        self.values |= {
            contract.MAX_TOP_K: np.array([most]),
            contract.TOP_K: np.array([[each.top_k] for each in asked]),
            contract.NOISE: noise,
            contract.LAST_NOISE: np.array([NOISE_STEPS - 1]),
            contract.STEP: np.zeros((len(asked), 1), np.int64),
            **self._columns("base_coefficient", "end_bonus", "temperature", "top_p", "min_p"),
        }

    def _controls(self, is_wide: bool) -> None:
        """One number wide where nobody uses a control, unless told otherwise."""
        asked, vocab = self._asked, self._graph.manifest.vocab_size
        bias, allowed = np.zeros((len(asked), vocab), np.float32), np.ones((len(asked), -(-vocab // 8) * 8), bool)
        written = np.zeros((len(asked), vocab), np.float32)
        for index, each in enumerate(asked):
            bias[index, list(each.bias)] = list(each.bias.values())
            if each.allowed is not None:
                allowed[index] = False
                allowed[index, list(each.allowed)] = True
            prompt, reply = each.written
            written[index, list(prompt)] = contract.IN_PROMPT
            np.add.at(written[index], list(reply), 1)
        counts = {(each.repetition_penalty, each.presence_penalty, each.frequency_penalty) for each in asked}
        packed = np.packbits(allowed, axis=1, bitorder="little")
        self.values |= {
            contract.BIAS: bias if is_wide or bias.any() else np.zeros((1, 1), np.float32),
            contract.ALLOWED: packed if is_wide or not allowed.all() else np.full((1, 1), 255, np.uint8),
            contract.WRITTEN: written if is_wide or counts != {(1.0, 0.0, 0.0)} else written[:, :1] * 0,
            **self._columns("repetition_penalty", "presence_penalty", "frequency_penalty"),
        }

    def _columns(self, *names: str) -> dict[str, Array]:
        return {name: np.array([[getattr(each, name)] for each in self._asked], np.float32) for name in names}

    def _shuffled(self, things: list[Any]) -> list[Any]:
        return [things[index] for index in self._random.permutation(len(things))]

"""A batch that is written by hand as the arrays of a graph, number by number; no device, no decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pad_runtime.adapters.factors import LoraFactors
from pad_runtime.adapters.heads import FeatureHeads
from pad_runtime.adapters.persrm_files import PersRMFiles
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, open_bundle
from pad_runtime.decode.inputs import END_OFFERED, InputBuilder
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.rows.batch import Batch, Member, PromptPart, RowPart, TrunkPart
from pad_runtime.rows.noise import NoiseTape
from pad_runtime.rows.row import Reading, Row
from pad_runtime.rows.sequence import Controls, Sampling, SequenceSpec
from tests.support import tiny_bundles, tiny_models

PLAIN, MANY = 0, 1  # PersRMs: an adapter of rank 4 alone; one of rank 5 with three features
NO_DEVICE: Any = None
Heads = Callable[[Batch], dict[str, Any]]
EVERYTHING = {
    *(value for name, value in vars(contract).items() if name.isupper() and isinstance(value, str)),
    *(contract.lora_gate(site) for site in contract.LORA_SITES),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_models.make_base(folder / "base", "llama", seed=41)
    tiny_models.make_adapter(folder / "plain", folder / "base", seed=42, rank=4)
    tiny_models.make_adapter(folder / "many", folder / "base", seed=44, rank=5)
    tiny_models.make_head(folder / "many", 84, d=3, seed=46)
    persrms = [folder / "plain", folder / "many"]
    return tiny_bundles.export(folder / "bundle", folder / "base", persrms, max_top_k=64)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return open_bundle(bundle)[0]


@pytest.fixture(scope="module")
def builder(bundle: Path) -> InputBuilder:
    manifest, files = open_bundle(bundle)
    persrms = PersRMFiles(files, manifest)
    factors, heads = LoraFactors(persrms, manifest, NO_DEVICE), FeatureHeads(persrms, manifest, NO_DEVICE)
    return InputBuilder(manifest, factors, heads)


@pytest.fixture(scope="module")
def heads(bundle: Path) -> Heads:
    """What is bound beside the arrays of a batch."""
    manifest, files = open_bundle(bundle)
    made, trunk = FeatureHeads(PersRMFiles(files, manifest), manifest, DeviceMemory(cuda=None)), manifest.trunks[0]

    def read(batch: Batch) -> dict[str, Any]:
        buffers = made.buffers(trunk, made.columns(trunk, batch.readings(0)))
        return {name: buffer.read() for name, buffer in buffers.items()}

    return read


def member(
    sequence: SequenceSpec, *, step: int = 0, prompt: tuple[int, ...] = (), chosen: tuple[int, ...] = ()
) -> Member:
    return Member(sequence, step, prompt, chosen, NoiseTape(sequence.sampling))


ALONE = SequenceSpec((Row(0, 0),), (Reading(0, (), 1.0),), Sampling(top_k=5))
GUIDED = SequenceSpec(
    (Row(0, 0), Row(0, 1, MANY)),
    (Reading(0, (), -1.5), Reading(1, (0.5, -1.0, 2.0), 2.5)),
    Sampling(top_k=40, temperature=0.7, top_p=0.9, min_p=0.05, seed=9, offer_end=True),
)
# In the arena the guided sequence, second in the batch, lies first; it has read 4 tokens of one prompt and none of the
# other, the plain one 2 of its own.
TRUNK = TrunkPart(
    (PromptPart(1, (7, 8, 9), 4), PromptPart(1, (1,), 0), PromptPart(0, (3,), 2)),
    (RowPart(1, 0, Row(0, 0), 0), RowPart(1, 1, Row(0, 1, MANY), 1), RowPart(0, 0, Row(0, 0), 2)),
)
BATCH = Batch((member(ALONE), member(GUIDED, step=2)), (TRUNK,))


def check(arrays: dict[str, Any], **expected: Any) -> None:
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], np.array(value, arrays[name].dtype), err_msg=name)
        assert arrays[name].shape == np.shape(value), name


def test_a_plain_and_a_guided_sequence_side_by_side(builder: InputBuilder, heads: Heads, bundle: Path) -> None:
    arrays = builder.arrays(BATCH, EVERYTHING, capacity=None)
    check(
        arrays,
        input_ids=[[7, 8, 9], [1, 0, 0], [3, 0, 0]],
        seqlens_k=[6, 0, 2],
        last_token=[[2], [0], [0]],
        total_sequence_length=7,
        prompt_sequence=[[1], [1], [0]],
        row_prompt=[0, 1, 2],
        base_row=[2, 0],
        base_coefficient=[[1.0], [-1.5]],
        reading_row=[1],
        reading_sequence=[1],
        coefficients=[[0.0], [2.5]],
        reading_weights=[[0.0, 1.0]],  # one head, already mixed
        max_top_k=[40],
        top_k=[[5], [40]],
        temperature=[[0.0], [0.7]],
        min_p=[[0.0], [0.05]],
        end_bonus=[[0.0], [END_OFFERED]],
        step=[[0], [2]],
        bias=[[0.0]],
        allowed=[[0xFF]],
        written=[[0.0], [0.0]],
        repetition_penalty=[[1.0], [1.0]],
        presence_penalty=[[0.0], [0.0]],
        frequency_penalty=[[0.0], [0.0]],
    )
    assert arrays["top_p"][0] > 1.0, "1 keeps everything, whatever rounding does to the mass"
    assert arrays["top_p"][1] == np.float32(0.9)
    stored, bound = load_file(bundle / "heads" / "many.safetensors"), heads(BATCH)
    mixed = sum(weight * head for weight, head in zip((0.5, -1.0, 2.0), stored["heads"], strict=True))
    np.testing.assert_allclose(bound["feature_heads"], mixed[None], rtol=1e-6, atol=1e-6)
    assert bound["feature_biases"].shape == (1, 1, 84)
    for site in contract.LORA_SITES:  # columns of the one PersRM that is active
        gate = arrays[contract.lora_gate(site)]
        assert gate.shape[0] == 3
        assert gate.shape[2] % 5 == 0
        assert [set(row.ravel()) for row in gate] == [{0.0}, {1.0}, {0.0}]


def test_types_are_the_contract_s(builder: InputBuilder) -> None:
    arrays = builder.arrays(BATCH, EVERYTHING, capacity=None)
    by_type: dict[str, set[str]] = {}
    for name, array in arrays.items():
        by_type.setdefault(array.dtype.name, set()).add(name)
    assert by_type["int32"] == {"seqlens_k", "total_sequence_length"}
    assert by_type["uint8"] == {"allowed"}
    assert by_type["int64"] == {
        *("input_ids", "last_token", "prompt_sequence", "row_prompt", "reading_row", "reading_sequence"),
        *("base_row", "max_top_k", "top_k", "step", "last_noise"),
    }
    assert set(by_type) == {"int32", "int64", "uint8", "float32"}


def test_noise_is_each_sequence_s_own(builder: InputBuilder) -> None:
    """As wide as the largest k, as long as the longest; a sequence with fewer candidates draws as if alone."""
    narrow = replace(ALONE, sampling=Sampling(top_k=3, temperature=1.0, seed=4))
    batch = replace(BATCH, members=(member(narrow, step=300), member(GUIDED)))
    arrays = builder.arrays(batch, EVERYTHING, capacity=None)
    noise = arrays["noise"]
    assert noise.shape == (2, 256, 40), "no longer than a reply can be: max_length"
    check(arrays, last_noise=[255])

    def stream(seed: int, k: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(seed)).gumbel(size=(256, k)).astype(np.float32)

    np.testing.assert_array_equal(noise[0, :, :3], stream(4, 3))
    np.testing.assert_array_equal(noise[1], stream(9, 40))
    assert not np.array_equal(noise[0, :, :3], stream(4, 40)[:, :3])  # control: drawn as wide as the neighbour's
    greedy = builder.arrays(replace(BATCH, members=(member(ALONE), member(ALONE))), EVERYTHING, capacity=None)
    assert greedy["noise"].shape == (2, 1, 5)
    check(greedy, last_noise=[0])


def test_a_step_says_the_capacity_in_place_of_the_length(builder: InputBuilder) -> None:
    """The value is the same at any length, so that a captured step stays good."""
    check(builder.arrays(BATCH, EVERYTHING, capacity=64), total_sequence_length=64)


def test_controls_of_one_sequence(builder: InputBuilder, manifest: Manifest) -> None:
    size = manifest.vocab_size
    controls = Controls(bias={3: -2.0, 8: 100.0}, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25)
    controlled = member(replace(GUIDED, controls=controls), step=3, prompt=(4, 4, 6), chosen=(6, 9, 9))
    allowed = np.zeros(-(-size // 8), np.uint8)
    allowed[0] = 0b1010
    members = (member(ALONE, prompt=(1, 2), chosen=(5,)), replace(controlled, allowed=allowed))
    arrays = builder.arrays(replace(BATCH, members=members), EVERYTHING, capacity=None)
    check(
        arrays,
        repetition_penalty=[[1.0], [1.5]],
        presence_penalty=[[0.0], [0.5]],
        frequency_penalty=[[0.0], [0.25]],
    )
    written, bias = np.zeros((2, size)), np.zeros((2, size))
    written[1, [4, 6, 9]] = 0.5, 1.5, 2.0
    bias[1, [3, 8]] = -2.0, 100.0
    check(arrays, written=written, bias=bias, allowed=[[0xFF] * len(allowed), allowed])


def test_the_base_s_own_graph_has_no_readings(manifest: Manifest) -> None:
    """And asks for nothing of a PersRM: a file that cannot be read is no matter of a plain reply."""
    builder = InputBuilder(manifest, factors=NO_DEVICE, heads=NO_DEVICE)
    trunk = TrunkPart(
        (PromptPart(1, (7, 8), 0), PromptPart(0, (3,), 2)), (RowPart(1, 0, Row(0, 0), 0), RowPart(0, 0, Row(0, 0), 1))
    )
    names = EVERYTHING - {contract.READING_ROW, contract.READING_SEQUENCE, contract.READING_WEIGHTS}
    names -= {contract.ROW_PROMPT, contract.COEFFICIENTS, contract.BASE_COEFFICIENT, contract.END_BONUS}
    arrays = builder.arrays(Batch((member(ALONE), member(ALONE)), (trunk,)), names, capacity=None)
    check(arrays, base_row=[1, 0], input_ids=[[7, 8], [3, 0]], seqlens_k=[1, 2], top_k=[[5], [5]])
    assert arrays.keys() <= names
    assert not {contract.FEATURE_HEADS, contract.READING_WEIGHTS, contract.COEFFICIENTS} & arrays.keys()


def test_a_run_that_fills_the_cache_reads_nothing(builder: InputBuilder) -> None:
    """One row of the sequence alone: an input is never empty, so there is a reading, and it counts for nothing."""
    trunk = TrunkPart((PromptPart(0, (5, 6), 10),), (RowPart(0, 1, Row(0, 1, MANY), 0),))
    arrays = builder.arrays(Batch((member(GUIDED),), (trunk,), scores=False), EVERYTHING, capacity=None)
    check(
        arrays,
        base_row=[0],
        base_coefficient=[[1.0]],
        reading_row=[0],
        reading_sequence=[0],
        coefficients=[[0.0]],
        seqlens_k=[11],
        total_sequence_length=12,
    )
    np.testing.assert_array_equal(arrays["reading_weights"][:, 0], [1.0])


def test_more_mixes_than_features_use_the_heads_themselves(builder: InputBuilder, heads: Heads) -> None:
    """Then a mix is weights over the heads; with fewer, each mix is one head."""
    people = [(1.0, 0.0, 0.5), (0.0, 2.0, 0.0), (3.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
    rows = tuple(RowPart(number, 1, Row(0, 1, MANY), number) for number in range(4))
    trunk = TrunkPart(tuple(PromptPart(number, (1,), 0) for number in range(4)), rows)
    for count, shape in ((2, (2, 84, 84)), (3, (3, 84, 84)), (4, (3, 84, 84))):
        members = tuple(
            member(replace(GUIDED, readings=(Reading(0, (), 1.0), Reading(1, weights, 1.0)))) for weights in people
        )
        part = TrunkPart(trunk.prompts[:count], rows[:count])
        batch = Batch(members[:count], (part,))
        weights, bound = builder.arrays(batch, EVERYTHING, capacity=None)["reading_weights"], heads(batch)
        assert bound["feature_heads"].shape == shape
        mixed = np.einsum("lp,phk->lhk", weights[:, 1:], bound["feature_heads"])
        stored = heads(Batch(members, (trunk,)))["feature_heads"]
        expected = np.einsum("lp,phk->lhk", np.array(people[:count], np.float32), stored)
        np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_knows_who_takes_part() -> None:
    other = TrunkPart((PromptPart(0, (1,), 0),), (RowPart(0, 2, Row(1, 1, PLAIN), 0),))
    batch = replace(BATCH, trunks=(TRUNK, other))
    assert (batch.active, batch.max_top_k) == ((PLAIN, MANY), 40)
    assert [batch.reads(trunk) for trunk in (0, 1)] == [False, True], "with two trunks the base's has no readings"
    assert BATCH.reads(0)
    assert [(part.row, part.sequence, part.persrm) for part in BATCH.all_readings] == [(1, 1, MANY)]

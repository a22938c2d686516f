"""Parts of replies as arrays, by hand and with no device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pad_runtime.adapters.factors import LoraFactors
from pad_runtime.adapters.heads import FeatureHeads
from pad_runtime.adapters.persrm_files import PersRMFiles
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import open_bundle
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.score.inputs import ScoreInputs
from pad_runtime.score.parts import Part
from pad_runtime.score.request import RewardPrompt, ScoreRequest
from tests.support import tiny_bundles, tiny_models

SAME = ScoreRequest((5, 6), (7, 8, 9), (RewardPrompt(1, (5, 6)),))  # the PersRM reads what the base reads
OTHER = ScoreRequest((5,), (6, 7), (RewardPrompt(0, (3, 4, 5)), RewardPrompt(1, (3, 4, 5))))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two PersRMs of it, the second with two features."""
    folder = tiny_models.make_family(tmp_path_factory.mktemp("inputs"))
    tiny_models.make_head(folder / "two", 84, d=2, seed=3)
    return folder


def make_inputs(models: Path, topology: str, reference: str) -> ScoreInputs:
    output = models / f"{topology}-{reference}"
    if not output.exists():
        persrms = [models / "one", models / "two"]
        tiny_bundles.export(output, models / "base", persrms, topology=topology, reference=reference)
    manifest, files = open_bundle(output)
    persrms = PersRMFiles(files, manifest)
    memory = DeviceMemory(None)
    return ScoreInputs(manifest, LoraFactors(persrms, manifest, memory), FeatureHeads(persrms, manifest, memory))


def part(request: ScoreRequest, start: int = 0, stop: int | None = None) -> Part:
    return Part(0, request, start, len(request.reply) if stop is None else stop)


def test_rows_of_one_text_read_it_once(models: Path) -> None:
    run = make_inputs(models, "shared", "base").make([part(SAME)], 4)
    arrays = run.arrays
    assert run.active == (1,)
    assert arrays[contract.INPUT_IDS].tolist() == [[5, 6, 7, 8]]  # all but the last token of the reply
    assert arrays[contract.SEQLENS_K].tolist() == [3]
    assert arrays[contract.TOTAL_SEQUENCE_LENGTH] == 4
    assert arrays[contract.ROW_PROMPT].tolist() == [0, 0]
    assert arrays[contract.SCORED_TOKENS].tolist() == [7, 8, 9]
    assert arrays[contract.BASE_PLACE].tolist() == [[0, 1], [0, 2], [0, 3]]
    assert arrays[contract.READING_PLACE].tolist() == [[1, 1], [1, 2], [1, 3]]
    assert arrays[contract.READING_TOKEN].tolist() == [0, 1, 2]
    assert arrays[contract.lora_gate("qkv")][:, 0, 0].tolist() == [0, 1]
    assert arrays[contract.MAX_TOP_K].tolist() == [4]
    assert run.shapes == {
        contract.TOKEN_LOG_PROBS: (3,),
        contract.BASE_LOG_PROBS: (3,),
        contract.READING_LOG_PROBS: (3, 1 + 2),
    }


def test_a_part_of_a_reply_reads_what_stands_before_it(models: Path) -> None:
    arrays = make_inputs(models, "shared", "base").make([part(SAME, 1, 2)], 4).arrays
    assert arrays[contract.INPUT_IDS].tolist() == [[5, 6, 7]]
    assert arrays[contract.SCORED_TOKENS].tolist() == [8]
    assert arrays[contract.BASE_PLACE].tolist() == [[0, 2]]


def test_ragged_texts_of_several_requests_and_persrms(models: Path) -> None:
    run = make_inputs(models, "shared", "base").make([part(OTHER), part(SAME)], 4)
    arrays = run.arrays
    assert run.active == (0, 1)
    assert arrays[contract.INPUT_IDS].tolist() == [[5, 6, 0, 0], [3, 4, 5, 6], [5, 6, 7, 8]]
    assert arrays[contract.SEQLENS_K].tolist() == [1, 3, 3]
    assert arrays[contract.ROW_PROMPT].tolist() == [0, 1, 1, 2, 2]
    gate = arrays[contract.lora_gate("qkv")][:, 0]
    assert [int(row.sum()) for row in gate] == [0, gate.shape[1] // 2, gate.shape[1] // 2, 0, gate.shape[1] // 2]
    assert not (gate[1] * gate[2]).any()  # the second PersRM's columns are its own
    assert arrays[contract.BASE_PLACE].tolist() == [[0, 0], [0, 1], [3, 1], [3, 2], [3, 3]]
    assert arrays[contract.READING_PLACE].tolist() == [[1, 2], [1, 3], [2, 2], [2, 3], [4, 1], [4, 2], [4, 3]]
    assert arrays[contract.READING_TOKEN].tolist() == [0, 1, 0, 1, 2, 3, 4]


def test_a_reference_on_the_backbone_is_a_row_of_its_own_read_once(models: Path) -> None:
    arrays = make_inputs(models, "shared", "backbone").make([part(OTHER)], 4).arrays
    assert arrays[contract.ROW_PROMPT].tolist() == [0, 1, 1, 1]  # the base, one PersRM, the backbone, the other
    assert arrays[contract.READING_PLACE].tolist() == [[1, 2], [1, 3], [2, 2], [2, 3], [3, 2], [3, 3]]
    assert not arrays[contract.lora_gate("qkv")][[0, 2]].any()


def test_a_trunk_with_nothing_to_read_reads_one_token(models: Path) -> None:
    run = make_inputs(models, "pair", "base").make([part(ScoreRequest((5,), (6,)))], 4)
    assert run.arrays["reward." + contract.INPUT_IDS].tolist() == [[0]]
    assert run.arrays["reward." + contract.READING_PLACE].tolist() == [[0, 0]]
    assert run.shapes["reward." + contract.READING_LOG_PROBS][0] == 1
    assert contract.READING_LOG_PROBS not in run.shapes  # the base's trunk has no rewards beside it


def test_phi_is_the_reward_s_columns_less_the_reference(models: Path) -> None:
    """By numbers that say where they stand: 100 x reading + column, and 1000 + token for the base's."""

    def outputs(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        readings, columns = shapes[contract.READING_LOG_PROBS]
        tokens = np.arange(shapes[contract.TOKEN_LOG_PROBS][0], dtype=np.float32)
        own = 100.0 * np.arange(readings)[:, None] + np.arange(columns)
        return {
            contract.TOKEN_LOG_PROBS: tokens,
            contract.BASE_LOG_PROBS: 1000 + tokens,
            contract.READING_LOG_PROBS: own.astype(np.float32),
        }

    run = make_inputs(models, "shared", "base").make([part(SAME), part(OTHER)], 4)
    same, other = run.scores(outputs(run.shapes))
    assert same.log_probs.tolist() == [0, 1, 2]
    assert other.log_probs.tolist() == [3, 4]
    expected = [[100.0 * n + column - 1000 - n for column in (1, 2)] for n in range(3)]
    assert [phi.tolist() for phi in same.phi] == [expected]
    plain = [[300.0 - 1003], [400.0 - 1004]]  # without a feature head: the hidden state's own logits, column 0
    two = [[500.0 + column - 1003 for column in (1, 2)], [600.0 + column - 1004 for column in (1, 2)]]
    assert [phi.tolist() for phi in other.phi] == [plain, two]
    run = make_inputs(models, "shared", "backbone").make([part(OTHER)], 4)
    (scores,) = run.scores(outputs(run.shapes))
    assert scores.phi[0].tolist() == [[0.0 - 200], [100.0 - 300]]
    assert scores.phi[1].tolist() == [[401.0 - 200, 402 - 200], [501.0 - 300, 502 - 300]]

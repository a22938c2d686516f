"""The step graph and the base's own, fed by hand, against the formulas: sequences of every kind in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pad_export.verify.tolerance import difference
from pad_runtime.bundle import contract
from tests.support import tiny_bundles, tiny_models, tiny_tokenizers
from tests.support.hand_fed import Asked, AskedReading, AskedRow, HandFedGraph, HandFedRun
from tests.support.step_formula import Expected, Wearing, expect_step
from tests.support.torch_oracle import TorchModel, tolerance

NUM_STEPS = 8  # beyond the noise that is drawn
ENDS = (tiny_tokenizers.byte_level().token_to_id("</s>"),)
OFFERED = 1e9
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "shared": ("llama", {}, "shared"),
    "softcapped": ("gemma2", {"final_logit_softcapping": 10.0, "sliding_window": 6}, "shared"),
    "pair": ("qwen2", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 48}, "pair"),
}
CASES = [(kind, dialect) for kind in KINDS for dialect in ("ort", "standard")]
A, B, C, D = (5, 17, 300, 41, 8), (9, 8, 7, 6, 5, 4, 200, 2, 77, 31, 12), (250,), tuple(range(20, 33))


@dataclass(frozen=True)
class Kind:
    """Checkpoints of a kind, its sequences, and what the formulas give for each of them, step by step."""

    folder: Path
    asked: list[Asked]
    guided: list[list[Expected]]
    plain: list[list[Expected]]  # of the base's rows alone


@dataclass(frozen=True)
class Made:
    """Both graphs of a bundle of a kind."""

    kind: Kind
    step: HandFedGraph
    base: HandFedGraph


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    """By kind and dialect, when first asked for."""

    @cache
    def make_kind(name: str) -> Kind:
        family, config, topology = KINDS[name]
        folder = tmp_path_factory.mktemp(name)
        base, persrm = folder / "base", folder / "persrm"
        hidden = tiny_models.make_base(base, family, seed=3, **config).config.hidden_size
        tiny_models.make_adapter(persrm, base, seed=4)
        tiny_models.make_head(persrm, hidden, d=2, seed=5)
        plain = Wearing(TorchModel(base))
        models = [
            {
                False: plain,
                True: Wearing(TorchModel(base, adapter=persrm), TorchModel(base, adapter=persrm, head=persrm)),
            }
        ]
        if topology == "pair":  # the same model again, as the rewards' own trunk
            models.insert(0, {False: plain})
        asked = sequences(len(models) - 1)
        return Kind(folder, asked, expect(models, asked, ENDS), expect(models, alone(asked), ()))

    @cache
    def make(name: str, dialect: str) -> Made:
        kind, topology = make_kind(name), KINDS[name][2]
        options = {"topology": topology, "reference": "backbone", "dialect": dialect}
        bundle = kind.folder / f"bundle-{dialect}"
        tiny_bundles.export(bundle, kind.folder / "base", [kind.folder / "persrm"], **options)
        return Made(kind, HandFedGraph(bundle, "step"), HandFedGraph(bundle, "base"))

    return make


def expect(models: Sequence[dict[bool, Wearing]], asked: Sequence[Asked], ends: Sequence[int]) -> list[list[Expected]]:
    """Of each sequence, which goes on with the tokens that the formulas choose."""
    found: list[list[Expected]] = [[] for _ in asked]
    for each, steps in zip(asked, found, strict=True):
        for _ in range(NUM_STEPS):
            steps.append(expect_step(models, each, [step.id for step in steps], ends))
    return found


def alone(asked: Sequence[Asked]) -> list[Asked]:
    """Without readings: the base's rows, under the same controls."""
    return [replace(each, rows=each.rows[:1], readings=(), base_coefficient=1.0) for each in asked]


def sequences(trunk: int) -> list[Asked]:
    """Plain and guided, one row to four, few and many candidates, greedy and sampled, with controls and without.

    `trunk` runs the rewards.
    """

    def reward(prompt: tuple[int, ...]) -> AskedRow:
        return AskedRow(trunk, prompt, is_adapted=True)

    def reference(prompt: tuple[int, ...]) -> AskedRow:
        return AskedRow(trunk, prompt)

    def plain(row: int, coefficient: float) -> AskedReading:
        """A reading of h alone."""
        return AskedReading(row, (1.0, 0.0, 0.0), coefficient)

    base_a, base_b, base_c, base_d = (AskedRow(0, prompt) for prompt in (A, B, C, D))
    return [
        Asked((base_a,)),
        Asked(
            (base_b, reward(C), reference(C)),
            (AskedReading(1, (0.0, 0.7, -0.4), 1.3), plain(2, -0.9)),
            top_k=40,
            end_bonus=OFFERED,
        ),
        Asked(
            (base_c, reward(A)),
            (
                AskedReading(1, (1.0, 0.0, 0.0), 0.6),
                AskedReading(1, (0.0, 1.5, 0.2), -0.8),
                AskedReading(1, (0.0, 0.0, 1.0), 1.1),
            ),
            base_coefficient=0.4,
            top_k=12,
            temperature=1.7,
            top_p=0.5,
            seed=11,
        ),
        Asked(
            (base_d, reward(B), reward(D), reference(B)),
            (AskedReading(2, (0.0, 1.0, 1.0), 0.9), AskedReading(1, (0.3, 0.5, 0.0), 0.5), plain(3, -0.7)),
            top_k=9,
            temperature=3.0,
            min_p=0.3,
            seed=12,
            allowed=range(1, 356, 3),
        ),
        Asked(
            (base_b,),
            top_k=7,
            temperature=2.0,
            seed=13,
            bias={31: 6.0, 12: -4.0, 77: 5.5},
            repetition_penalty=1.4,
            presence_penalty=0.8,
            frequency_penalty=0.6,
        ),
    ]


def worst_difference(run: HandFedRun, expected: Sequence[Sequence[Expected]]) -> float:
    """Of everything that is weighed, over all steps and sequences; infinite for another candidate or another token."""
    worst = 0.0
    for now in zip(*expected, strict=True):
        outputs = run.step()
        if [step.id for step in now] != outputs[contract.NEXT_IDS].tolist():
            return float("inf")
        if contract.SCORES in outputs:
            worst = max(worst, *(trace_difference(run, outputs, index, step) for index, step in enumerate(now)))
    return worst


def trace_difference(run: HandFedRun, outputs: dict[str, Any], index: int, expected: Expected) -> float:
    number = len(expected.candidates)
    if not np.array_equal(outputs[contract.CANDIDATES][index, :number], expected.candidates):
        return float("inf")
    own = sorted((number, place) for place, (sequence, number) in enumerate(run.readings) if sequence == index)
    readings = outputs[contract.READING_LOGITS][[place for _, place in own]]
    pairs = [
        (outputs[contract.BASE_LOGITS][index, :number], expected.base_logits),
        (outputs[contract.SCORES][index, :number], expected.scores),
    ] + ([(readings[:, :number], expected.reading_logits)] if own else [])
    return max(difference(torch.tensor(ours).double(), torch.tensor(theirs)) for ours, theirs in pairs)


@pytest.mark.parametrize(("kind", "dialect"), CASES)
def test_sequences_of_every_kind_in_one_batch(made: Callable[[str, str], Made], kind: str, dialect: str) -> None:
    """Tokens, candidates, logits and scores, with rows, prompts and readings in two orders."""
    bundle = made(kind, dialect)
    for seed in (1, 2):
        run = bundle.step.run(bundle.kind.asked, seed=seed)
        assert worst_difference(run, bundle.kind.guided) < tolerance()


@pytest.mark.parametrize(("kind", "dialect"), CASES)
def test_each_as_alone(made: Callable[[str, str], Made], kind: str, dialect: str) -> None:
    """A graph of several trunks runs all of them: a plain sequence is beside one that is guided there."""
    bundle = made(kind, dialect)
    asked, expected = bundle.kind.asked, bundle.kind.guided
    for index, each in enumerate(asked):
        beside = [] if each.readings else [1]
        run = bundle.step.run([each, *(asked[other] for other in beside)])
        assert worst_difference(run, [expected[index], *(expected[other] for other in beside)]) < tolerance()


@pytest.mark.parametrize(("kind", "dialect"), CASES)
def test_the_base_alone(made: Callable[[str, str], Made], kind: str, dialect: str) -> None:
    """The base's own graph chooses the same tokens, in a batch and one by one."""
    bundle = made(kind, dialect)
    asked, expected = alone(bundle.kind.asked), bundle.kind.plain
    assert worst_difference(bundle.base.run(asked, seed=4), expected) == 0.0
    for each, own in zip(asked, expected, strict=True):
        assert worst_difference(bundle.base.run([each]), [own]) == 0.0


@pytest.mark.parametrize("graph", ["step", "base"])
def test_a_control_that_nobody_uses_is_the_same_at_any_width(made: Callable[[str, str], Made], graph: str) -> None:
    """Bit by bit: zeros as wide as the vocabulary, for each sequence or for all, and one number alone."""
    bundle = made("shared", "ort")
    session = bundle.step if graph == "step" else bundle.base
    none = {"bias": {}, "allowed": None, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    asked = [replace(each, **none) for each in bundle.kind.asked]
    runs = [session.run(asked), session.run(asked, is_wide=True)]
    runs.append(session.run(asked, is_wide=True))
    for name in (contract.BIAS, contract.ALLOWED):
        runs[2].values[name] = runs[2].values[name][:1]
    assert runs[0].values[contract.WRITTEN].shape == (len(asked), 1)
    assert runs[1].values[contract.BIAS].shape == (len(asked), session.manifest.vocab_size)
    names = (contract.NEXT_IDS, *(contract.TRACE_OUTPUTS if graph == "step" else ()))
    for _ in range(NUM_STEPS):
        outputs = [run.step() for run in runs]
        for name in names:
            assert all(np.array_equal(outputs[0][name], other[name]) for other in outputs[1:])


def test_counts_grow_by_what_is_chosen(made: Callable[[str, str], Made]) -> None:
    bundle = made("shared", "ort")
    asked = bundle.kind.asked
    run = bundle.step.run(asked)
    expected = run.values[contract.WRITTEN].copy()
    assert expected.shape[1] == bundle.step.manifest.vocab_size
    for step in range(NUM_STEPS):
        assert np.array_equal(run.values[contract.STEP], np.full((len(asked), 1), step))
        outputs = run.step()
        expected[range(len(asked)), outputs[contract.NEXT_IDS]] += 1
        assert np.array_equal(outputs[contract.NEXT_WRITTEN], expected)


def _swap(name: str) -> Callable[[HandFedRun], None]:
    """Everything in the order of someone else."""

    def change(run: HandFedRun) -> None:
        run.values[name] = np.roll(run.values[name], 1, axis=0)

    return change


def _later(run: HandFedRun) -> None:
    run.values[contract.STEP] += 1


def _all_the_candidates(run: HandFedRun) -> None:
    run.values[contract.TOP_K][:] = run.values[contract.MAX_TOP_K]


def _ends_for_all(run: HandFedRun) -> None:
    run.values[contract.END_BONUS][:] = OFFERED


def _features_in_another_order(run: HandFedRun) -> None:
    run.values[contract.READING_WEIGHTS] = run.values[contract.READING_WEIGHTS][:, [0, 2, 1]]


FAULTS: dict[str, Callable[[HandFedRun], None]] = {
    "another sequence's base row": _swap(contract.BASE_ROW),
    "another reading's row": _swap(contract.READING_ROW),
    "another sequence's candidates": _swap(contract.READING_SEQUENCE),
    "another reading's weights": _swap(contract.READING_WEIGHTS),
    "features in another order": _features_in_another_order,
    "another sequence's coefficients": _swap(contract.COEFFICIENTS),
    "another sequence's base coefficient": _swap(contract.BASE_COEFFICIENT),
    "another sequence's top k": _all_the_candidates,
    "another sequence's temperature": _swap(contract.TEMPERATURE),
    "another sequence's top_p": _swap(contract.TOP_P),
    "another sequence's min_p": _swap(contract.MIN_P),
    "another sequence's noise": _swap(contract.NOISE),
    "noise of the step after": _later,
    "another sequence's end": _swap(contract.END_BONUS),
    "the end offered to all": _ends_for_all,
    "another sequence's bias": _swap(contract.BIAS),
    "another sequence's mask": _swap(contract.ALLOWED),
    "another sequence's counts": _swap(contract.WRITTEN),
    "another sequence's repetition penalty": _swap(contract.REPETITION_PENALTY),
    "another sequence's presence penalty": _swap(contract.PRESENCE_PENALTY),
    "another sequence's frequency penalty": _swap(contract.FREQUENCY_PENALTY),
    "another row's adapter": _swap(contract.lora_gate("down")),
    "another row's prompt": _swap(contract.ROW_PROMPT),
    "another prompt's sequence": _swap(contract.PROMPT_SEQUENCE),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_input_shows(made: Callable[[str, str], Made], fault: str) -> None:
    bundle = made("shared", "ort")
    run = bundle.step.run(bundle.kind.asked, seed=1)
    FAULTS[fault](run)
    assert worst_difference(run, bundle.kind.guided) > 10 * tolerance()

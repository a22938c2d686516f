"""Cells into replies, on tiny bundles of two PersRMs; the first has the random reward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality.bundles import base_mark, persrm_mark
from benchmarks.quality.design import Design
from benchmarks.quality.generation import CellGenerator
from benchmarks.quality.methods import BASE, PENALTIES, RANDOM
from benchmarks.quality.random_reward import write_random_persrm
from benchmarks.quality.traits import load_traits
from pad_export.read.persrm import PROMPT_TEMPLATE
from pad_rt import GenerationConfig, Preference
from tests.support import tiny_bundles, tiny_models

QUESTIONS = ["How are you?", "What is rain?", "Why?"]
FEATURES = ["cheerful", "simple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    base = tiny_models.make_base(folder / "base", "llama", seed=5)
    for seed, name in enumerate(("persrm", "persrm-1")):
        tiny_models.make_adapter(folder / name, folder / "base", seed=seed)
        tiny_models.make_head(folder / name, base.config.hidden_size, d=2, seed=seed)
        (folder / name / "pad_persrm.json").write_text(json.dumps({"features": FEATURES}))
    write_random_persrm(folder / "persrm", folder / "random", seed=0)
    for name, others in (("persrm", ["random"]), ("persrm-1", [])):
        persrms = [folder / each for each in (name, *others)]
        tiny_bundles.export(folder / f"bundle-{name}", folder / "base", persrms, max_batch=2)
    said = {name: {"more": [f"Be {name}."], "less": [f"Be not {name}."]} for name in FEATURES}
    (folder / "features.json").write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="module")
def design(folder: Path) -> Design:
    traits = load_traits(FEATURES, folder / "features.json")
    return Design({name: replace(trait, max_new_tokens=6) for name, trait in traits.items()}, ("persrm", "persrm-1"))


@pytest.fixture(scope="module")
def speak(folder: Path) -> CellGenerator:
    first, second = (folder / f"bundle-{name}" for name in ("persrm", "persrm-1"))
    bundles = {BASE: first, "persrm": first, RANDOM: first, "persrm-1": second}
    return CellGenerator(bundles, dict.fromkeys(FEATURES, 3.0), "{x}", num_threads=1)


def test_a_cell_is_what_its_method_says(speak: CellGenerator, design: Design, folder: Path) -> None:
    config = GenerationConfig(
        max_new_tokens=6, beta=design.beta, frequency_penalty=dict(PENALTIES)["frequency_penalty"]
    )
    wanted = {"simple": -1.0}
    told = PROMPT_TEMPLATE.replace("{p}", "Be not simple.")
    for method, persrm, prompts, preference in (
        ("base", "persrm", QUESTIONS, None),
        ("prompted", "persrm", [told.replace("{x}", question) for question in QUESTIONS], None),
        ("pad", "persrm", QUESTIONS, Preference(weights=wanted)),
        ("pad", "persrm-1", QUESTIONS, Preference(weights=wanted)),
    ):
        generator = tiny_bundles.load(folder / f"bundle-{persrm}")
        expected = [generator.generate(prompt, preference=preference, config=config).text for prompt in prompts]
        file = speak(design.cell(method, wanted, persrm=persrm), QUESTIONS)  # type: ignore[arg-type]
        assert [reply.text for reply in file.replies] == expected, (method, persrm)
        assert [reply.prompt for reply in file.replies] == QUESTIONS
        assert all(reply.cut for reply in file.replies)


def test_methods_differ(speak: CellGenerator, design: Design) -> None:
    cells = [design.cell(method, {"simple": 1.0}) for method in ("base", "prompted", "pad", "random")]
    cells.append(design.cell("pad", {"simple": 1.0}, persrm="persrm-1"))
    texts = [tuple(reply.text for reply in speak(cell, QUESTIONS).replies) for cell in cells]
    assert len(set(texts)) == len(cells)


def test_a_sample_hangs_on_its_question_alone(speak: CellGenerator, design: Design) -> None:
    """A cell that is taken up again has the replies that it would have had at once."""
    cell = design.cell("pad", {"simple": 1.0}, sample=1)
    at_once = speak(cell, QUESTIONS).replies
    assert speak(cell, QUESTIONS[1:]).replies == at_once[1:]
    assert speak(replace(cell, sample=2), QUESTIONS).replies != at_once
    assert speak(replace(cell, sample=0), QUESTIONS).replies != at_once


def test_what_a_question_is_put_in_is_read_with_it(speak: CellGenerator, design: Design) -> None:
    cell = design.cell("prompted", {"simple": 1.0})
    asked = CellGenerator({}, {}, "Question: {x}\nAnswer:")
    prompt, _ = asked.request(cell, "Why?")
    assert prompt == PROMPT_TEMPLATE.replace("{p}", "Be simple.").replace("{x}", "Question: Why?\nAnswer:")
    assert speak.request(cell, "Why?")[0] != prompt


def test_marks_follow_what_decides_the_replies(folder: Path) -> None:
    base = base_mark(folder / "base", "int4", "{x}")
    assert base == base_mark(folder / "base", "int4", "{x}")
    assert base != base_mark(folder / "base", "fp32", "{x}") != base_mark(folder / "base", "int4", "Q: {x}")
    marks = {persrm_mark(folder / name, mark) for name in ("persrm", "persrm-1") for mark in (base, "another")}
    assert len(marks) == 4
    with pytest.raises(SystemExit, match="is missing"):
        persrm_mark(folder / "base", base)

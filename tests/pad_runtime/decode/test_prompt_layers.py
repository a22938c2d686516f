"""Layers below every adapter run once for each prompt, whatever rows read it, and nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from pad_rt import EncodedPrompt, GenerationConfig, Generator, Preference
from pad_rt.cli.main import main
from pad_runtime.bundle import contract
from pad_runtime.decode import inputs
from pad_runtime.devices.ort.graph import OrtGraph
from pad_runtime.rows import plan
from tests.support import tiny_bundles, tiny_models
from tests.support.guided_steps import Asked, open_slots
from tests.support.torch_oracle import OracleReward, TorchModel, cache_difference, decode, tolerance, trace_difference

LAYERS = 4
ADAPTED = {"upper": [2, 3], "top": [3], "gap": [1, 3]}  # where each adapter sits
BUNDLES = {  # PersRMs -> the first layer that any of them touches
    ("upper",): 2,
    ("top",): 3,
    ("gap",): 1,
    ("upper", "top"): 2,
    ("whole",): 0,
    (): LAYERS,
}
BASE, OTHER = (5, 17, 300, 41, 8), (9, 8, 7, 6, 5, 4, 200)
BETA, NUM_TOKENS = 2.0, 12


@dataclass(frozen=True)
class Models:
    folder: Path
    base: TorchModel
    persrms: dict[str, TorchModel]

    def bundle(self, names: tuple[str, ...], dialect: str) -> Path:
        return self.folder / f"{'-'.join(names) or 'none'}-{dialect}"

    def load(self, names: tuple[str, ...], dialect: str) -> Generator:
        return tiny_bundles.load(self.bundle(names, dialect))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("prompt-layers")
    tiny_models.make_base(folder / "base", "llama", seed=5, num_hidden_layers=LAYERS)
    for seed, (name, layers) in enumerate({**ADAPTED, "whole": range(LAYERS)}.items()):
        tiny_models.make_adapter(
            folder / name,
            folder / "base",
            seed=seed,
            layers_to_transform=list(layers),
            target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        )
    for names in BUNDLES:
        for dialect in ("ort", "standard"):
            output = folder / f"{'-'.join(names) or 'none'}-{dialect}"
            tiny_bundles.export(output, folder / "base", [folder / name for name in names], dialect=dialect)
    persrms = {name: TorchModel(folder / "base", adapter=folder / name) for name in (*ADAPTED, "whole")}
    return Models(folder, TorchModel(folder / "base"), persrms)


def config() -> GenerationConfig:
    return GenerationConfig(beta=BETA, top_k=6, max_new_tokens=NUM_TOKENS)


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("names", [names for names in BUNDLES if names])
@pytest.mark.parametrize("reward_prompt", [BASE, OTHER], ids=["same", "other"])
def test_replies_are_torch_s(
    models: Models, names: tuple[str, ...], dialect: str, reward_prompt: tuple[int, ...]
) -> None:
    generator = models.load(names, dialect)
    wish = Preference(weights=dict.fromkeys(names, 1.0))
    found = generator.generate(EncodedPrompt(BASE, reward_prompt), preference=wish, config=config(), trace=True)
    rewards = [OracleReward(models.persrms[name], reward_prompt) for name in names]
    expected = decode(models.base, BASE, rewards, beta=BETA, top_k=6, num_tokens=NUM_TOKENS)
    assert list(found.token_ids) == expected.token_ids
    assert trace_difference(found.trace, expected) < tolerance()
    plain = decode(models.base, BASE, [], beta=BETA, top_k=6, num_tokens=NUM_TOKENS)
    assert expected.token_ids != plain.token_ids  # control: the adapter counts


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize(("names", "first"), BUNDLES.items())
def test_only_what_is_adapted_has_a_cache_for_every_row(
    models: Models, names: tuple[str, ...], first: int, dialect: str, bound: dict[str, tuple[int, ...]]
) -> None:
    bundle = tiny_bundles.open_bundle(models.bundle(names, dialect))
    decoder, (trunk,) = bundle.decoder(), bundle.manifest.trunks
    assert trunk.prompt_layers == first
    # Two sequences: the first one's rewards read what its base row reads, the second one's something else.
    asked = [
        Asked.of(
            plan.plan_rows(bundle.manifest, BASE, [plan.Reward(0, (1.0,), 1.0, prompt)], BETA),
            new_tokens=NUM_TOKENS,
        )
        for prompt in (BASE, OTHER)
    ]
    slots = open_slots(decoder, asked)
    decoder.step(slots, trace=True)
    num_rows = sum(len(each.sequence.rows) for each in asked)
    widths = [bound[contract.past_key(layer)][0] for layer in range(LAYERS)]
    assert widths == [3] * first + [num_rows] * (LAYERS - first)
    for slot, each in zip(slots, asked, strict=True):
        for number, row in enumerate(slot.sequence.rows):
            prompt = each.prompts[row.prompt]
            expected, other = (models.base.cache(ids) for ids in (prompt, OTHER if prompt == BASE else BASE))
            for layer in range(first):  # what is kept there is the base's, of each prompt
                cache = decoder.cache(slot, number, layer)
                assert cache[0].shape[1] == len(prompt)
                assert cache_difference(cache, expected[layer]) < tolerance()
                length = min(len(BASE), len(OTHER))
                cut = tuple(part[:, :length] for part in cache), tuple(part[:, :length] for part in other[layer])
                assert cache_difference(*cut) > 0.1  # type: ignore[arg-type]  # control


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    """Shapes of the last inputs that a graph was bound to, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    real = OrtGraph.bind

    def bind(self: OrtGraph, inputs: Any, *rest: Any, **options: Any) -> Any:
        shapes.update({name: buffer.shape for name, buffer in inputs.items()})
        return real(self, inputs, *rest, **options)

    monkeypatch.setattr(OrtGraph, "bind", bind)
    return shapes


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_a_batch_is_its_sequences_alone_whoever_reads_what(models: Models, dialect: str) -> None:
    """Ragged prompts, one or two rewards, and a sequence that is filled up, in turn on the same step."""
    generator = models.load(("upper", "top"), dialect)
    prompts = [EncodedPrompt(BASE, BASE), EncodedPrompt(OTHER, BASE), EncodedPrompt(OTHER[:3], OTHER[:3])]
    wishes = [
        Preference(weights={"upper": 1.0}),
        Preference(weights={"upper": 0.5, "top": 1.0}),
        Preference(weights={"top": -1.0}),
    ]
    alone = [
        generator.generate(prompt, preference=wish, config=config()).token_ids
        for prompt, wish in zip(prompts, wishes, strict=True)
    ]
    assert len({tuple(ids) for ids in alone}) == len(alone)
    for order in ([0, 1, 2], [2, 0], [1, 1, 0], [2, 1, 0]):
        results = generator.generate_batch(
            [prompts[i] for i in order], preferences=[wishes[i] for i in order], config=config()
        )
        assert [result.token_ids for result in results] == [alone[i] for i in order]


def test_a_row_reads_the_prompt_that_it_is_given(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with every row sent to the first prompt, the second sequence says something else."""
    generator = models.load(("upper",), "ort")
    prompts, wish = [EncodedPrompt(BASE, BASE), EncodedPrompt(OTHER, OTHER)], Preference(weights={"upper": 1.0})
    expected = [r.token_ids for r in generator.generate_batch(prompts, preferences=[wish] * 2, config=config())]
    right = inputs.InputBuilder.arrays

    def wrong(self: inputs.InputBuilder, *arguments: Any, **options: Any) -> dict[str, Any]:
        arrays = right(self, *arguments, **options)
        arrays[contract.ROW_PROMPT] = np.zeros_like(arrays[contract.ROW_PROMPT])
        return arrays

    monkeypatch.setattr(inputs.InputBuilder, "arrays", wrong)
    found = [r.token_ids for r in generator.generate_batch(prompts, preferences=[wish] * 2, config=config())]
    assert found[0] == expected[0]
    assert found[1] != expected[1]


def test_pad_info_says_where_the_rows_part(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    for names, said in ((("top",), True), (("whole",), False)):
        main(["info", str(models.bundle(names, "ort"))])
        page = " ".join(capsys.readouterr().out.split())
        assert ("of the last 1 layers: below, rows with one prompt are one" in page) == said


@pytest.mark.parametrize(("names", "first"), BUNDLES.items())
def test_adapters_and_inputs_begin_where_the_rows_part(models: Models, names: tuple[str, ...], first: int) -> None:
    generator = models.load(names, "ort")
    inputs = generator.manifest.graphs[contract.STEP_GRAPH].inputs
    adapted = {int(name.split(".")[1]) for name in inputs if name.startswith("lora.")}
    assert adapted == (set(range(first, LAYERS)) if names else set())
    for persrm in generator.manifest.persrms:
        if persrm.adapter:
            with safe_open(models.bundle(names, "ort") / persrm.adapter, "numpy") as file:
                assert {int(name.split(".")[1]) for name in file.keys()} == adapted  # noqa: SIM118 - no mapping
    assert contract.ROW_PROMPT in inputs
    assert contract.ROW_PROMPT not in generator.manifest.graphs[contract.BASE_GRAPH].inputs

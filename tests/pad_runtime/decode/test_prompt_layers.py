"""Layers below every adapter run once for each prompt, whatever rows read it, and nothing else changes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
from pad_runtime.decode.step import GraphStep, StepRequest
from safetensors import safe_open

from pad_rt import EncodedPrompt, GenerationConfig, Generator, Preference
from pad_rt.cli.main import main
from pad_runtime.bundle import contract
from pad_runtime.rows import row as rows
from tests.support import tiny_bundles, tiny_models
from tests.support.torch_oracle import Reward, TorchModel, cache_difference, decode, tolerance, trace_difference

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

    def load(self, names: tuple[str, ...], dialect: str) -> Generator:
        return tiny_bundles.load(self.folder / f"{'-'.join(names) or 'none'}-{dialect}")


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


def request_of(generator: Generator, *prompts: EncodedPrompt, preferences: list[Preference]) -> StepRequest:
    return generator._prepare(list(prompts), preferences, config(), trace=True).request


def widths(step: GraphStep) -> list[int]:
    """How many rows the KV cache of each layer has."""
    return [step.cache(0, layer)[0].shape[0] for layer in range(LAYERS)]


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("names", [names for names in BUNDLES if names])
@pytest.mark.parametrize("reward_prompt", [BASE, OTHER], ids=["same", "other"])
def test_replies_are_torch_s(
    models: Models, names: tuple[str, ...], dialect: str, reward_prompt: tuple[int, ...]
) -> None:
    generator = models.load(names, dialect)
    wish = Preference(weights=dict.fromkeys(names, 1.0))
    found = generator.generate(EncodedPrompt(BASE, reward_prompt), preference=wish, config=config(), trace=True)
    rewards = [Reward(models.persrms[name], reward_prompt) for name in names]
    expected = decode(models.base, BASE, rewards, beta=BETA, top_k=6, num_tokens=NUM_TOKENS)
    assert list(found.token_ids) == expected.token_ids
    assert trace_difference(found.trace, expected) < tolerance()
    plain = decode(models.base, BASE, [], beta=BETA, top_k=6, num_tokens=NUM_TOKENS)
    assert expected.token_ids != plain.token_ids  # control: the adapter counts


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize(("names", "first"), BUNDLES.items())
def test_only_what_is_adapted_has_a_cache_for_every_row(
    models: Models, names: tuple[str, ...], first: int, dialect: str
) -> None:
    generator = models.load(names, dialect)
    (trunk,) = generator.manifest.trunks
    assert trunk.prompt_layers == first
    wishes = [Preference(weights={name: 1.0}) for name in names] or [Preference("x")]
    step = generator._bundle.guided_step()
    # Two sequences: the first one's rewards read what its base row reads, the second one's something else.
    request = request_of(generator, EncodedPrompt(BASE, BASE), EncodedPrompt(BASE, OTHER), preferences=wishes[:1] * 2)
    step.prefill(request)
    num_rows = sum(len(sequence[0]) for sequence in request.sequences)
    assert widths(step) == [3] * first + [num_rows] * (LAYERS - first)
    for layer in range(first):  # what is kept there is the base's, of each prompt
        for place, prompt in enumerate((BASE, BASE, OTHER)):
            assert cache_difference(step.cache(0, layer), place, models.base.cache(prompt)[layer]) < tolerance()
        assert cache_difference(step.cache(0, layer), 2, models.base.cache(BASE)[layer]) > 0.1  # control


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
    right = rows.TrunkPrompts.of.__func__  # type: ignore[attr-defined]

    def wrong(cls: type, *arguments: object) -> rows.TrunkPrompts:
        read: rows.TrunkPrompts = right(cls, *arguments)
        return dataclasses.replace(read, rows=[0] * len(read.rows))

    monkeypatch.setattr(rows.TrunkPrompts, "of", classmethod(wrong))
    found = [r.token_ids for r in generator.generate_batch(prompts, preferences=[wish] * 2, config=config())]
    assert found[0] == expected[0]
    assert found[1] != expected[1]


def test_pad_info_says_where_the_rows_part(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    for names, said in ((("top",), True), (("whole",), False)):
        main(["info", str(models.folder / f"{names[0]}-ort")])
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
            with safe_open(generator._bundle.folder / persrm.adapter, "numpy") as file:
                assert {int(name.split(".")[1]) for name in file.keys()} == adapted  # noqa: SIM118 - no mapping
    assert contract.ROW_PROMPT in inputs
    assert contract.ROW_PROMPT not in generator.manifest.graphs[contract.BASE_GRAPH].inputs

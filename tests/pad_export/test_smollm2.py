"""The real model, SmolLM2-135M-Instruct in fp32 with the demo's PersRM, against transformers and PEFT.

Greedy tokens are checked in one forward pass: if at every position the arg max of torch's own scores, given the tokens
so far, is the token that was chosen, then torch's greedy decoding is the same sequence, by induction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from demo.smollm2 import WEIGHTS_PERSRM, WORDS_PERSRM, find_smollm2
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_export.plan import make_plan
from pad_rt import GenerationConfig, Generator, Preference

NUM_TOKENS = 64
WEIGHTS = Preference(weights={"cheerful": 1.0, "simple": -0.5})
PROMPTS = (
    "How do I boil an egg?",
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain photosynthesis to a child.",
    "Give me three tips for better sleep.",
    "Translate 'good morning' into Spanish and use it in a sentence.",
    "What is 17 times 23? Show your work.",
    "Why is the sky blue? Answer in two sentences — no more.",
    "List the planets of the solar system.",
    "Hello! \N{WAVING HAND SIGN} Who are you?",
)


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Generator]:
    """Of both shipped PersRMs."""
    found = {}
    for persrm in (WEIGHTS_PERSRM, WORDS_PERSRM):
        folder: Path = tmp_path_factory.mktemp("smollm2") / "bundle"
        export_bundle(find_smollm2(), folder, persrms=[persrm], options=ExportOptions(verify=False))
        found[persrm] = Generator.load(folder)
    return found


@pytest.fixture(scope="module")
def generator(generators: dict[Path, Generator]) -> Generator:
    return generators[WEIGHTS_PERSRM]


@pytest.mark.parametrize("persrm", [WEIGHTS_PERSRM, WORDS_PERSRM])
def test_the_file_is_known_for_the_model_that_the_adapter_names(persrm: Path) -> None:
    """A quantised file under the hub's name of the model, which calls itself something else; no option says so."""
    plan = make_plan(find_smollm2(), [persrm])
    assert plan.topology == "shared"
    (note,) = plan.notes
    assert note.startswith(f"taking {find_smollm2()} (it calls itself 'Smollm2 135M 8k Lc100K Mix1 Ep2') for ")
    assert note.endswith(f"'HuggingFaceTB/SmolLM2-135M-Instruct', which {persrm} was trained on")


def test_where_their_rows_part(generators: dict[Path, Generator]) -> None:
    """The one that is asked by weights shares two thirds of the layers with the base."""
    layers = [generators[persrm].manifest.trunks[0].prompt_layers for persrm in (WEIGHTS_PERSRM, WORDS_PERSRM)]
    assert layers == [20, 0]
    assert [generators[persrm].manifest.persrms[0].takes_text for persrm in (WEIGHTS_PERSRM, WORDS_PERSRM)] == [
        False,
        True,
    ]


@pytest.fixture(scope="module")
def model() -> Any:
    """The same weights by transformers' own reader."""
    path = find_smollm2()
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@torch.no_grad()
def logits_after(model: Any, prompt: list[int], token_ids: tuple[int, ...]) -> torch.Tensor:
    """Logits that chose each of the tokens: [tokens, vocab]."""
    logits = model(input_ids=torch.tensor([[*prompt, *token_ids]])).logits[0]
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(token_ids)]


def test_beta_zero_is_transformers_greedy(generator: Generator, model: Any) -> None:
    """All ten prompts, guided with beta 0 in ragged batches; then one by one on the base's own graph."""
    config = GenerationConfig(beta=0.0, max_new_tokens=NUM_TOKENS)
    guided = [
        result
        for half in (PROMPTS[:5], PROMPTS[5:])
        for result in generator.generate_batch(half, preferences=[WEIGHTS] * 5, config=config)
    ]
    for prompt, result in zip(PROMPTS, guided, strict=True):
        ids = generator._planner._encoder.encode(prompt)
        expected = tuple(logits_after(model, ids, result.token_ids).argmax(-1).tolist())
        assert result.token_ids == expected, prompt
        if result.finish_reason == "stop":
            end = logits_after(model, [*ids, *result.token_ids], (0,)).argmax(-1)
            assert end.item() in generator.manifest.eos_token_ids
        else:
            assert len(result.token_ids) == NUM_TOKENS
    for prompt, result in list(zip(PROMPTS, guided, strict=True))[::4]:
        assert generator.generate(prompt, config=config).token_ids == result.token_ids


def test_one_prompt_by_transformers_generate(generator: Generator, model: Any) -> None:
    ids = generator._planner._encoder.encode(PROMPTS[2])
    output = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=NUM_TOKENS
    )
    ours = generator.generate(PROMPTS[2], config=GenerationConfig(max_new_tokens=NUM_TOKENS)).token_ids
    assert tuple(output[0, len(ids) :].tolist())[: len(ours)] == ours


@torch.no_grad()
def features_after(model: Any, prompt: list[int], token_ids: tuple[int, ...], head: dict[str, Any]) -> torch.Tensor:
    """The PersRM's logits of each feature, lm_head(W_i h + b_i): [d, tokens, vocab]."""
    hidden = model.get_base_model().model(input_ids=torch.tensor([[*prompt, *token_ids]])).last_hidden_state[0]
    hidden = hidden[len(prompt) - 1 : len(prompt) - 1 + len(token_ids)]
    weight, bias = head["feature_head.weight"].float(), head["feature_head.bias"].float()
    return model.get_base_model().lm_head(torch.einsum("dij,nj->dni", weight, hidden) + bias[:, None])


@pytest.mark.parametrize(
    ("folder", "preference"),
    [(WEIGHTS_PERSRM, WEIGHTS), (WORDS_PERSRM, WEIGHTS), (WORDS_PERSRM, "Be cheerful.")],
    ids=["weights", "weights by all layers", "words"],
)
def test_guided_tokens_are_the_papers_formula(
    generators: dict[Path, Generator], model: Any, folder: Path, preference: Preference | str
) -> None:
    beta, top_k = 2.0, 10
    generator = generators[folder]
    config = GenerationConfig(beta=beta, top_k=top_k, max_new_tokens=NUM_TOKENS)
    info = generator.manifest.persrms[0]
    text = preference if isinstance(preference, str) else None
    defaults = dict(zip(info.features, info.default_weights, strict=True))
    weights = defaults if isinstance(preference, str) else preference.weights
    runs = []
    for prompt in PROMPTS[:3]:
        base_ids = generator._planner._encoder.encode(prompt)
        reward_ids = generator._planner._encoder.encode_reward(prompt, text, info.prompt_template)
        chosen = generator.generate(prompt, preference=preference, config=config).token_ids
        runs.append((reward_ids, chosen, logits_after(model, base_ids, chosen)))
    head = load_file(folder / "value_head.safetensors")
    persrm = PeftModel.from_pretrained(model, folder)
    for reward_ids, chosen, base_logits in runs:
        features = features_after(persrm, reward_ids, chosen, head)
        best, candidates = base_logits.topk(top_k)
        reference = best.log_softmax(-1)
        reward = sum(
            weights.get(name, 0.0) * (feature.gather(1, candidates).log_softmax(-1) - reference)
            for name, feature in zip(info.features, features, strict=True)
        )
        expected = candidates.gather(1, (best + beta * reward).argmax(-1, keepdim=True))[:, 0]
        assert chosen == tuple(expected.tolist())
        wrong = candidates.gather(1, (best - beta * reward).argmax(-1, keepdim=True))[:, 0]
        assert chosen != tuple(wrong.tolist())
    persrm.unload()

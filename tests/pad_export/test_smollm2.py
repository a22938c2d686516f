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

from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_export.plan import make_plan
from pad_rt import GenerationConfig, Generator, Preference
from pad_rt.text.prompt import PromptEncoder
from tests.support.bundle_text import read_encoder

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
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "bundle"
    export_bundle(find_smollm2(), folder, persrms=[WEIGHTS_PERSRM], options=ExportOptions(verify=False))
    return folder


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> PromptEncoder:
    """The base's tokenizer and chat template."""
    return read_encoder(bundle)


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Generator:
    return Generator.load(bundle)


def test_the_file_is_known_for_the_model_that_the_adapter_names() -> None:
    """A quantised file under the hub's name of the model, which calls itself something else; no option says so."""
    plan = make_plan(find_smollm2(), [WEIGHTS_PERSRM])
    assert plan.topology == "shared"
    (note,) = plan.notes
    assert note.startswith(f"taking {find_smollm2()} (it calls itself 'Smollm2 135M 8k Lc100K Mix1 Ep2') for ")
    assert note.endswith(f"'HuggingFaceTB/SmolLM2-135M-Instruct', which {WEIGHTS_PERSRM} was trained on")


def test_where_the_rows_part(generator: Generator) -> None:
    """The PersRM shares two thirds of the layers with the base."""
    assert generator.manifest.trunks[0].prompt_layers == 20
    assert not generator.manifest.persrms[0].takes_text


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


def test_beta_zero_is_transformers_greedy(generator: Generator, encoder: PromptEncoder, model: Any) -> None:
    """All ten prompts, guided with beta 0 in ragged batches; then one by one on the base's own graph."""
    config = GenerationConfig(beta=0.0, max_new_tokens=NUM_TOKENS)
    guided = [
        result
        for half in (PROMPTS[:5], PROMPTS[5:])
        for result in generator.generate_batch(half, preferences=[WEIGHTS] * 5, config=config)
    ]
    for prompt, result in zip(PROMPTS, guided, strict=True):
        ids = encoder.encode(prompt)
        expected = tuple(logits_after(model, ids, result.token_ids).argmax(-1).tolist())
        assert result.token_ids == expected, prompt
        if result.finish_reason == "stop":
            end = logits_after(model, [*ids, *result.token_ids], (0,)).argmax(-1)
            assert end.item() in generator.manifest.eos_token_ids
        else:
            assert len(result.token_ids) == NUM_TOKENS
    for prompt, result in list(zip(PROMPTS, guided, strict=True))[::4]:
        assert generator.generate(prompt, config=config).token_ids == result.token_ids


def test_one_prompt_by_transformers_generate(generator: Generator, encoder: PromptEncoder, model: Any) -> None:
    ids = encoder.encode(PROMPTS[2])
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


def test_guided_tokens_are_the_papers_formula(generator: Generator, encoder: PromptEncoder, model: Any) -> None:
    beta, top_k = 2.0, 10
    config = GenerationConfig(beta=beta, top_k=top_k, max_new_tokens=NUM_TOKENS)
    features_of_head = generator.manifest.persrms[0].features
    runs = []
    for prompt in PROMPTS[:3]:
        ids = encoder.encode(prompt)
        chosen = generator.generate(prompt, preference=WEIGHTS, config=config).token_ids
        runs.append((ids, chosen, logits_after(model, ids, chosen)))
    head = load_file(WEIGHTS_PERSRM / "value_head.safetensors")
    persrm = PeftModel.from_pretrained(model, WEIGHTS_PERSRM)
    for ids, chosen, base_logits in runs:
        features = features_after(persrm, ids, chosen, head)
        best, candidates = base_logits.topk(top_k)
        reference = best.log_softmax(-1)
        reward = sum(
            WEIGHTS.weights.get(name, 0.0) * (feature.gather(1, candidates).log_softmax(-1) - reference)
            for name, feature in zip(features_of_head, features, strict=True)
        )
        expected = candidates.gather(1, (best + beta * reward).argmax(-1, keepdim=True))[:, 0]
        assert chosen == tuple(expected.tolist())
        wrong = candidates.gather(1, (best - beta * reward).argmax(-1, keepdim=True))[:, 0]
        assert chosen != tuple(wrong.tolist())
    persrm.unload()

"""The golden bundle: every weight an integer over a power of two, from NumPy's Philox: no release changes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt import GenerationConfig, Generator, Preference
from tests.support import tiny_bundles

FILE = Path(__file__).parents[1] / "golden" / "greedy.json"
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, RANK = 80, 2, 5, 1, 16, 4
SEED = 44000  # one for which no choice is near a tie
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>")
TEMPLATE = "[{p}] {x}"
CHAT_TEMPLATE = "<s>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HEADS * HEAD_DIM),
    "self_attn.k_proj": (HIDDEN, KV_HEADS * HEAD_DIM),
    "self_attn.v_proj": (HIDDEN, KV_HEADS * HEAD_DIM),
    "self_attn.o_proj": (HEADS * HEAD_DIM, HIDDEN),
    "mlp.gate_proj": (HIDDEN, 56),
    "mlp.up_proj": (HIDDEN, 56),
    "mlp.down_proj": (56, HIDDEN),
}


@dataclass(frozen=True)
class Case:
    """One call of the generator and what came of it."""

    name: str
    prompt: str
    preference: dict[str, Any] | None
    config: dict[str, Any]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""


def _kind(**weights: float) -> dict[str, Any]:
    return {"text": "be kind", "weights": weights}


GREEDY = {"beta": 1.25, "top_k": 8, "max_new_tokens": 72}
CASES = (
    Case("guided", "How do I boil an egg?", _kind(kind=1.0, brief=-0.5), GREEDY),
    Case("guided the other way", "How do I boil an egg?", _kind(kind=-0.5, brief=1.0), GREEDY),
    Case("base", "How do I boil an egg?", None, GREEDY),
    Case("sampled", "the cook", _kind(kind=1.0), {**GREEDY, "temperature": 1.5, "top_p": 0.9, "seed": 7}),
)


def export(folder: Path, *, dialect: Any = "ort") -> Path:
    """Make the models and their bundle."""
    if not (folder / "base").exists():
        _make_base(folder / "base")
        _make_persrm(folder / "persrm")
    output = folder / f"bundle-{dialect}"
    persrm = folder / "persrm"
    export_bundle(folder / "base", output, persrms=[persrm], options=ExportOptions(topology="shared", dialect=dialect))
    return tiny_bundles.set_eos(output, ())


def run(bundle: Path, case: Case) -> Case:
    """The case with the tokens and the text that this bundle gives."""
    generator: Generator = tiny_bundles.load(bundle)
    preference = None if case.preference is None else Preference(**case.preference)
    config = GenerationConfig(**case.config)
    result = generator.generate(case.prompt, preference=preference, config=config)
    return Case(case.name, case.prompt, case.preference, case.config, list(result.token_ids), result.text)


def write(cases: list[Case]) -> None:
    """Store the cases."""
    text = json.dumps([asdict(case) for case in cases], indent=1, ensure_ascii=True)
    FILE.write_text(text + "\n", encoding="utf-8")


def read() -> list[Case]:
    """The stored cases."""
    return [Case(**fields) for fields in json.loads(FILE.read_text(encoding="utf-8"))]


def _integers(seed: int, *shape: int, largest: int, scale: float, mean: float = 0.0) -> torch.Tensor:
    """mean + n * scale with n from -largest to largest: exact in float32."""
    draw = np.random.Generator(np.random.Philox(seed)).random(shape)
    return torch.from_numpy((np.floor(draw * (2 * largest + 1)) - largest) * scale + mean).float()


def _make_base(folder: Path) -> None:
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=56,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            options = {"scale": 2**-3, "mean": 1.0} if "norm" in name else {"scale": 2**-4}
            parameter.copy_(_integers(SEED + index, *parameter.shape, largest=2 if "norm" in name else 6, **options))
    model.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def _make_persrm(folder: Path) -> None:
    """A PEFT adapter with a head of two features, written file by file."""
    folder.mkdir()
    tensors, seed = {}, SEED + 100
    for layer in range(LAYERS):
        for module, (inputs, outputs) in LINEARS.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = _integers(seed, RANK, inputs, largest=3, scale=2**-3)
            tensors[f"{name}.lora_B.weight"] = _integers(seed + 1, outputs, RANK, largest=3, scale=2**-3)
            seed += 2
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    modules = [module.split(".")[-1] for module in LINEARS]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK}
    settings |= {"target_modules": modules, "base_model_name_or_path": "base", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    head = {
        "feature_head.weight": _integers(SEED + 300, 2, HIDDEN, HIDDEN, largest=1, scale=2**-3) + torch.eye(HIDDEN),
        "feature_head.bias": _integers(SEED + 301, 2, HIDDEN, largest=3, scale=2**-4),
    }
    safetensors.torch.save_file(head, folder / "value_head.safetensors")
    settings = {"name": "golden", "features": ["kind", "brief"], "prompt_template": TEMPLATE}
    (folder / "pad_persrm.json").write_text(json.dumps(settings))


def _tokenizer() -> tokenizers.Tokenizer:
    """ASCII, syllables, characters of several bytes, and the bytes of one more, each a token; nothing learned."""
    encoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ascii_tokens = [chr(code) for code in range(0x20, 0x7F)]
    syllables = [first + second + end for first in "bdgklmnprst" for second in "aeiou" for end in ("", "n", " ")]
    wide = ["é", "ü", "東", "京", "🥚", "🎉", "…"]
    spelled = [encoder.pre_tokenize_str(token)[0][0] for token in (*ascii_tokens, *syllables, *wide)]
    egg = list(encoder.pre_tokenize_str("🍳")[0][0])
    vocab = {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL, *spelled, *egg)))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = encoder
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

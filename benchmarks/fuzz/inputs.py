"""What is fuzzed: a tiny base, as a folder and as GGUF, two PersRMs of it, their bundle, and one with large weights."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import torch

from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from tests.support import tiny_gguf, tiny_models

HIDDEN = 64
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
LIMITS: dict[str, Any] = {"max_length": 256, "max_batch": 3, "max_top_k": 20}
_LARGE = 40 * 2**20 // (4 * HIDDEN)  # rows of an embedding that loading does not hash whole


@dataclass(frozen=True)
class Inputs:
    """Folders and files below one folder."""

    root: Path

    @property
    def base(self) -> Path:
        """A Hugging Face folder."""
        return self.root / "base"

    @property
    def persrms(self) -> tuple[Path, Path]:
        """An adapter with a head of two features, and one without."""
        return self.root / "one", self.root / "two"

    @property
    def gguf(self) -> Path:
        """The base as a file."""
        return self.root / "base.gguf"

    @property
    def bundle(self) -> Path:
        """The base with both PersRMs."""
        return self.root / "bundle"

    @property
    def large(self) -> Path:
        """The same with embeddings of 40 MiB."""
        return self.root / "large"


def make_inputs(root: Path) -> Inputs:
    """Write all of them."""
    inputs = Inputs(root)
    base = tiny_models.make_base(inputs.base, "llama", seed=1, tied=True, **SIZES)
    for seed, persrm in enumerate(inputs.persrms):
        tiny_models.make_adapter(persrm, inputs.base, seed=seed)
    tiny_models.make_head(inputs.persrms[0], HIDDEN, d=2, seed=3)
    add_tokenizer = partial(_add_tokenizer, inputs.base, base.config.vocab_size)
    kind = gguf.GGMLQuantizationType.F32
    tiny_gguf.write_gguf(inputs.gguf, base, kind=kind, tokenizer=False, extend=add_tokenizer)
    export_bundle(inputs.base, inputs.bundle, persrms=inputs.persrms, options=ExportOptions(verify=False, **LIMITS))
    _write_large(inputs)
    return inputs


def _add_tokenizer(base: Path, num_rows: int, writer: gguf.GGUFWriter) -> None:
    """The base's own, in the words of a GGUF file."""
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    padding = (f"[PAD{index}]" for index in range(num_rows))
    names = [*sorted(tokens, key=lambda token: tokens[token]), *padding][:num_rows]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types([3 if name in special else 5 if name.startswith("[PAD") else 1 for name in names])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(tokens["<s>"])
    writer.add_eos_token_id(tokens["</s>"])
    writer.add_chat_template(tiny_models.CHAT_TEMPLATE)


def _write_large(inputs: Inputs) -> None:
    """Rows behind the vocabulary that no prompt reaches, which the step reads all the same."""
    base = inputs.root / "large-base"
    model = tiny_models.make_base(base, "llama", seed=1, tied=True, **SIZES)
    torch.manual_seed(7)
    model.resize_token_embeddings(_LARGE, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-_LARGE // 2 :] *= 0.01
    model.save_pretrained(base)
    export_bundle(base, inputs.large, persrms=[], options=ExportOptions(verify=False, **LIMITS))


if __name__ == "__main__":
    make_inputs(Path(sys.argv[1]))

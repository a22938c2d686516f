"""The language model that a PersRM is trained on: its torch model, and the encoding of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from pad_export.read.checkpoint import Checkpoint
from pad_export.read.persrm import PROMPT_TEMPLATE
from pad_runtime.errors import CheckpointError, DataError
from pad_train.pairs.pair import Message

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Backbone:
    """A frozen model and its tokenizer.

    Attributes:
        model: a causal language model of transformers, in evaluation mode, with frozen parameters.
        tokenizer: with the checkpoint's chat template; without a template, a prompt is raw text.
        eos_id: the token that ends a reply.
    """

    model: Any
    tokenizer: Any
    eos_id: int

    def encode_prompt(self, messages: Sequence[Message], preference: str | None = None) -> list[int]:
        """Ids of a conversation up to the beginning of the reply, encoded as `pad_rt` encodes prompts.

        Args:
            messages: the turns, the last one the user's.
            preference: a preference in words; the last turn is then filled into the PersRM's prompt template.

        Raises:
            DataError: the chat template refuses these turns.
        """
        turns = [dict(message) for message in messages]
        if preference is not None:
            turns[-1]["content"] = PROMPT_TEMPLATE.format(x=turns[-1]["content"], p=preference)
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer.encode(turns[-1]["content"]))
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise DataError(
                f"turns that the chat template refuses ({error})", expected="a chat it was made for"
            ) from None
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the vocabulary, float32, [..., vocab], of final hidden states [..., hidden]."""
        # With a strided bfloat16 operand the product takes a hundred times as long.
        return self.cap(self.model.lm_head(hidden.contiguous()).float())

    def candidate_logits(self, hidden: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Logits of the candidates only, float32, [..., k].

        Args:
            hidden: final hidden states, [..., hidden].
            candidates: token ids, [..., k], the leading axes those of `hidden`.
        """
        rows = self.model.lm_head.weight[candidates].float()  # [..., k, hidden]
        return self.cap((rows @ hidden.float().unsqueeze(-1)).squeeze(-1))

    def cap(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits with the model's soft cap, which Gemma 2 has."""
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def encode_reply(self, text: str, *, finished: bool) -> list[int]:
        """Ids of a reply, the end of turn included if it ended there."""
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        return [*ids, self.eos_id] if finished else ids


def native_dtype() -> str:
    """The faster of `DTYPES`: bf16 where the machine multiplies it in hardware, elsewhere fp32, by a factor of six."""
    is_native = any(name.endswith("bf16") and has for name, has in torch.cpu.get_capabilities().items())
    return "bf16" if is_native or torch.cuda.is_available() else "fp32"


def load_backbone(checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> Backbone:
    """Load a checkpoint, from a folder or a GGUF file, as a model of transformers.

    Args:
        dtype: of the weights; None: `native_dtype`.

    Raises:
        CheckpointError: tensors missing or of other shapes, or no token that ends a reply.
    """
    if not checkpoint.eos_token_ids:
        raise CheckpointError(
            f"{checkpoint.path} names no token that ends a reply", expected="an eos_token", hint="set it in config.json"
        )
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=dtype or DTYPES[native_dtype()])
    state = {name: checkpoint.tensor(name) for name in sorted(checkpoint.names)}
    if checkpoint.tied:
        state.pop("lm_head.weight", None)
        model.tie_weights()
    wrong = {name for name, value in model.state_dict().items() if name in state and value.shape != state[name].shape}
    missing, unexpected = (set(), set()) if wrong else model.load_state_dict(state, strict=False)
    missing = set(missing) - ({"lm_head.weight"} if checkpoint.tied else set())
    if wrong or missing or unexpected:
        name = sorted(wrong or missing or unexpected)[0]
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} is not as its configuration says", hint="download the checkpoint again"
        )
    model.requires_grad_(False)
    info = checkpoint.tokenizer.info
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=checkpoint.tokenizer.backend,
        bos_token=info.bos_token,
        eos_token=info.eos_token,
        chat_template=info.chat_template,
        clean_up_tokenization_spaces=False,
    )
    eos_id = info.eos_id if info.eos_id is not None else checkpoint.eos_token_ids[0]
    return Backbone(model.eval(), tokenizer, eos_id)

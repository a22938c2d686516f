"""Perplexity of a reply under the base that reads the plain prompt: broken text shows here."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from transformers import DynamicCache

from benchmarks.quality.replies import JudgedReply
from pad_export.read.cache_argument import cache_argument
from pad_export.read.checkpoint import open_checkpoint
from pad_export.verify.torch_model import load_model
from pad_rt.text.chat_template import ChatTemplate
from pad_rt.text.prompt import PromptEncoder
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle.manifest import read_manifest


class BasePerplexity:
    """exp of the mean negative log-probability of a reply's tokens; torch, float32.

    Args:
        base: checkpoint of the base.
        bundle: whose tokenizer and chat template the prompts were encoded with.
        ask: text that a question is put in, with a place {x}.
    """

    def __init__(self, base: Path, bundle: Path, ask: str) -> None:
        self._model, self._ask = load_model(open_checkpoint(base)), ask
        info = read_manifest(bundle).tokenizer
        bos, eos, template = info.bos_token, info.eos_token, None
        if info.chat_template:
            text = (bundle / info.chat_template).read_text(encoding="utf-8")
            template = ChatTemplate(text, bos_token=bos, eos_token=eos)
        self._encoder = PromptEncoder(Tokenizer(bundle / info.file, bos_token=bos, eos_token=eos), template)
        self._read: dict[str, tuple[DynamicCache, torch.Tensor]] = {}  # prompts, as KV cache and last logits

    @torch.inference_mode()
    def __call__(self, reply: JudgedReply) -> float | None:
        """None for an empty reply."""
        if not reply.token_ids:
            return None
        cache, first = self._read_prompt(reply.prompt)
        ids = torch.tensor([reply.token_ids])
        later = first[:0]
        if ids.numel() > 1:
            cache = copy.deepcopy(cache)
            later = self._model(input_ids=ids[:, :-1], use_cache=True, **cache_argument(cache)).logits[0]
        loss = torch.nn.functional.cross_entropy(torch.cat([first, later]), ids[0])
        return round(math.exp(min(float(loss), 50.0)), 4)

    def _read_prompt(self, prompt: str) -> tuple[DynamicCache, torch.Tensor]:
        """One pass over a prompt serves all replies to it."""
        if prompt not in self._read:
            cache = DynamicCache()
            ids = torch.tensor([self._encoder.encode(self._ask.replace("{x}", prompt))])
            logits = self._model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache_argument(cache)).logits
            self._read[prompt] = cache, logits[0]
        return self._read[prompt]

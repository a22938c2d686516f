"""transformers as one side of a comparison: a decoding loop in torch, both models with their KV caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.latency.peers.loop import PeerTask, serve
from pad_export.read.cache_argument import cache_argument


class PadProcessor:
    """PAD as a LogitsProcessor of transformers: the base's top k, scored by a PersRM with a cache of its own."""

    def __init__(self, persrm: Any, reward_ids: list[int], *, top_k: int, beta: float) -> None:
        self._persrm, self._top_k, self._beta = persrm, top_k, beta
        self._unread: torch.Tensor | None = torch.tensor([reward_ids])
        self._cache = DynamicCache()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [1, vocab], -inf but for the candidates; `input_ids` [1, n] ends with the token chosen last."""
        unread = input_ids[:, -1:] if self._unread is None else self._unread
        self._unread = None
        rewards = self._persrm(input_ids=unread, logits_to_keep=1, **cache_argument(self._cache)).logits[:, -1]
        base, candidates = scores.topk(self._top_k)
        mixed = base + self._beta * (rewards.gather(-1, candidates) - base)
        return torch.full_like(scores, -torch.inf).scatter(-1, candidates, mixed)


class Transformers:
    """Files: base, persrm (merged), both Hugging Face folders."""

    def __init__(self, task: PeerTask) -> None:
        torch.set_num_threads(task.threads)
        self._task = task
        self._base, self._persrm = (
            AutoModelForCausalLM.from_pretrained(task.files[name], dtype=torch.float32).eval()
            for name in ("base", "persrm")
        )

    @torch.no_grad()
    def decode(self, guided: bool) -> Iterator[int]:
        task = self._task
        processor = PadProcessor(self._persrm, task.reward_ids, top_k=task.top_k, beta=task.beta) if guided else None
        cache, unread = DynamicCache(), torch.tensor([task.base_ids])
        while True:
            scores = self._base(input_ids=unread, logits_to_keep=1, **cache_argument(cache)).logits[:, -1]
            if processor:
                scores = processor(unread, scores)
            unread = scores.argmax(-1, keepdim=True)
            yield int(unread)


if __name__ == "__main__":
    serve(Transformers, "transformers", "torch")

"""Replies of the rivals that change the base itself: in torch, greedy, a batch of questions at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.quality.methods import Cell
from benchmarks.quality.replies import JudgedReply, ReplyFile
from benchmarks.quality.rivals.soup import Lora, stirred
from benchmarks.quality.rivals.vector import middle_layer, steered
from benchmarks.quality.torch_decoding import Greedy, decode
from pad_train.train.backbone import Backbone

BATCH = 24


@dataclass(frozen=True)
class TorchRivals:
    """The base, plain, with a soup of LoRAs, or with an activation vector.

    Attributes:
        loras, vectors: by feature.
        ask: text that a question is put in, with a place {x}.
    """

    backbone: Backbone
    loras: Mapping[str, Lora]
    vectors: Mapping[str, torch.Tensor]
    ask: str = "{x}"

    @contextmanager
    def changed(self, cell: Cell) -> Iterator[None]:
        """The base as a cell asks for it; a soup's weights and a vector's are those of the cell times its beta."""
        weights = {name: cell.beta * weight for name, weight in cell.weights}
        if cell.method == "soup":
            with stirred(self.backbone, self.loras, weights):
                yield
        elif cell.method == "vector":
            layer = middle_layer(self.backbone)
            with steered(self.backbone, self.vectors, weights, strength=1.0, layer=layer):
                yield
        else:
            yield

    def __call__(self, cell: Cell, questions: Sequence[str]) -> ReplyFile:
        """Replies in the order of the questions."""
        replies: dict[int, JudgedReply] = {}
        order = sorted(range(len(questions)), key=lambda index: len(questions[index]))
        started = time.perf_counter()
        with self.changed(cell):
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                made = self._batch([questions[index] for index in chosen], cell)
                replies |= dict(zip(chosen, made, strict=True))
        seconds = time.perf_counter() - started
        ordered = tuple(replies[index] for index in range(len(questions)))
        return ReplyFile(ordered, seconds, sum(reply.num_tokens for reply in ordered) / seconds)

    def _batch(self, questions: Sequence[str], cell: Cell) -> list[JudgedReply]:
        backbone = self.backbone
        greedy = Greedy(backbone, **dict(cell.penalties))
        asked = [self.ask.replace("{x}", question) for question in questions]
        prompts = [backbone.encode_prompt(({"role": "user", "content": text},)) for text in asked]
        decoded = decode(prompts, greedy, eos_id=backbone.eos_id, max_new_tokens=cell.max_new_tokens)
        texts = [backbone.tokenizer.decode(reply.token_ids, skip_special_tokens=True) for reply in decoded]
        return [
            JudgedReply(question, text, reply.token_ids, reply.cut)
            for question, text, reply in zip(questions, texts, decoded, strict=True)
        ]

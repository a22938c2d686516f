"""Optimum as one side of a comparison: two ORTModelForCausalLM with past, their logits mixed in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from benchmarks.latency.peers.loop import PeerTask, decode_pair, serve


class Model:
    """One folder of `optimum-cli export onnx --task text-generation-with-past`."""

    def __init__(self, folder: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
        self._past: Any = None
        self._length = 0

    def prefill(self, ids: list[int]) -> np.ndarray:
        self._past, self._length = None, 0
        return self._forward(ids)

    def step(self, token: int) -> np.ndarray:
        return self._forward([token])

    def _forward(self, ids: list[int]) -> np.ndarray:
        start, self._length = self._length, self._length + len(ids)
        output = self._model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones((1, self._length), dtype=torch.int64),
            position_ids=torch.arange(start, self._length)[None],
            past_key_values=self._past,
        )
        self._past = output.past_key_values
        logits: np.ndarray = output.logits[0, -1].numpy()
        return logits


class Optimum:
    """Files: base, persrm (merged), both from optimum-cli."""

    def __init__(self, task: PeerTask) -> None:
        torch.set_num_threads(task.threads)
        self._task = task
        self._base, self._persrm = (Model(task.files[name], task.threads) for name in ("base", "persrm"))

    def decode(self, guided: bool) -> Iterator[int]:
        return decode_pair(self._base, self._persrm, self._task, guided)


if __name__ == "__main__":
    serve(Optimum, "optimum-onnx", "onnxruntime", "transformers")

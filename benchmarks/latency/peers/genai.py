"""ONNX Runtime GenAI as one side of a comparison: two generators, mixed in NumPy; the base alone by its own search."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime_genai as og

from benchmarks.latency.peers.loop import PeerTask, decode_pair, serve


class Model:
    """One folder of the GenAI builder."""

    def __init__(self, folder: str, max_length: int) -> None:
        self._model = og.Model(folder)
        self._params = og.GeneratorParams(self._model)
        self._params.set_search_options(max_length=max_length, do_sample=False)
        self._generator = og.Generator(self._model, self._params)

    def prefill(self, ids: list[int]) -> np.ndarray:
        self._generator = og.Generator(self._model, self._params)
        self._generator.append_tokens(np.array([ids], np.int32))
        return self._logits()

    def step(self, token: int) -> np.ndarray:
        self._generator.append_tokens(np.array([[token]], np.int32))
        return self._logits()

    def _logits(self) -> np.ndarray:
        logits: np.ndarray = self._generator.get_logits()  # [1, 1, vocab]
        return logits.reshape(-1)

    def decode(self, ids: list[int]) -> Iterator[int]:
        """GenAI's own greedy search."""
        generator = og.Generator(self._model, self._params)
        generator.append_tokens(np.array([ids], np.int32))
        while True:
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])


class GenAI:
    """Files: base, persrm (merged), both from the GenAI builder."""

    def __init__(self, task: PeerTask) -> None:
        self._task = task
        max_length = max(len(task.base_ids), len(task.reward_ids)) + task.max_new_tokens + 1
        self._base, self._persrm = (Model(task.files[name], max_length) for name in ("base", "persrm"))

    def decode(self, guided: bool) -> Iterator[int]:
        if guided:
            return decode_pair(self._base, self._persrm, self._task, guided)
        return self._base.decode(self._task.base_ids)


if __name__ == "__main__":
    serve(GenAI, "onnxruntime-genai", "onnxruntime")

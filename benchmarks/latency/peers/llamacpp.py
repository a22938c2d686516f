"""llama.cpp as one side of a comparison: two contexts through llama-cpp-python, their logits mixed in NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import llama_cpp
import numpy as np

from benchmarks.latency.peers.loop import PeerTask, decode_pair, serve


class Model:
    """One GGUF file."""

    def __init__(self, path: str, task: PeerTask) -> None:
        self._llama = llama_cpp.Llama(
            model_path=path,
            n_ctx=max(len(task.base_ids), len(task.reward_ids)) + task.max_new_tokens + 1,
            n_threads=task.threads,
            n_threads_batch=task.threads,
            verbose=False,
        )

    def prefill(self, ids: list[int]) -> np.ndarray:
        self._llama.reset()
        return self._read(ids)

    def step(self, token: int) -> np.ndarray:
        return self._read([token])

    def _read(self, ids: list[int]) -> np.ndarray:
        self._llama.eval(ids)
        last = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        return np.ctypeslib.as_array(last, (self._llama.n_vocab(),))


class LlamaCpp:
    """Files: base, persrm (merged), both GGUF."""

    def __init__(self, task: PeerTask) -> None:
        self._task = task
        self._base, self._persrm = (Model(task.files[name], task) for name in ("base", "persrm"))

    def decode(self, guided: bool) -> Iterator[int]:
        return decode_pair(self._base, self._persrm, self._task, guided)


if __name__ == "__main__":
    serve(LlamaCpp, "llama-cpp-python")

"""llama.cpp as one side: two contexts, their sequences the slots of its server, which steps all of them in one batch.

The server itself gives the likeliest tokens of each model (`n_probs`), not the PersRM's logits of the base's
candidates; here they are at hand, and neither HTTP nor JSON costs time. A LoRA is of a context, not of a sequence, so
all people share one PersRM and differ in its strength.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import llama_cpp
import numpy as np

from benchmarks.latency.people.task import PeopleTask, TwoModels, serve

_BATCH, _PART = 2048, 512  # the server's own: tokens of a call, and of a pass through the model


class Model:
    """One GGUF file."""

    def __init__(self, path: str, task: PeopleTask) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = len(task.prompts) + 1
        params.n_ctx = params.n_seq_max * task.room
        params.n_batch, params.n_ubatch = _BATCH, _PART
        params.n_threads = params.n_threads_batch = task.threads
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._lengths: dict[int, int] = {}

    def read(self, ids: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        batch, last = self._batch, dict[int, int]()
        batch.n_tokens = 0
        for number, tokens in ids.items():
            for token in tokens:
                at = batch.n_tokens
                batch.token[at], batch.pos[at], batch.logits[at] = token, self._lengths.get(number, 0), 0
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
                self._lengths[number] = batch.pos[at] + 1
                batch.n_tokens += 1
            last[number] = batch.n_tokens - 1
            batch.logits[last[number]] = 1
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode of {batch.n_tokens} tokens failed")
        return {number: self._logits(at) for number, at in last.items()}

    def forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._lengths.clear()

    def _logits(self, at: int) -> np.ndarray:
        found: np.ndarray = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits_ith(self._context, at), (self._num_tokens,)
        )
        return found


def make(task: PeopleTask) -> TwoModels:
    """Files: base, persrm (merged), both GGUF."""
    llama_cpp.llama_backend_init()
    base, persrm = (Model(task.files[name], task) for name in ("base", "persrm"))
    return TwoModels(base, persrm, task)


if __name__ == "__main__":
    serve(make, "llama-cpp-python")

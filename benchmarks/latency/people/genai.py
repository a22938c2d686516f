"""ONNX Runtime GenAI as one side: two generators for those who come together, mixed in NumPy.

A generator takes a batch of prompts of one length, and nobody can join it: who comes later has generators of their own,
which take turns with the others step by step. GenAI has adapters, but one for all of a generator's sequences, so all
share one PersRM and differ in its strength.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime_genai as og

from benchmarks.latency.people.task import PeopleTask, TwoModels, serve


class Batch:
    """Sequences that came together, in one generator."""

    def __init__(self, model: og.Model, prompts: Mapping[int, Sequence[int]], room: int) -> None:
        self.numbers = list(prompts)
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=room, do_sample=False, batch_size=len(prompts))
        self._generator = og.Generator(model, params)
        self._generator.append_tokens(np.array(list(prompts.values()), np.int32))

    def logits(self) -> dict[int, np.ndarray]:
        """Of each sequence."""
        logits = self._generator.get_logits()  # [batch, 1, vocab]
        self._shape = logits.shape
        return dict(zip(self.numbers, logits[:, -1], strict=True))

    def read(self, ids: Mapping[int, Sequence[int]]) -> None:
        """Append a token to each; of those that have ended, any."""
        chosen = np.zeros((len(self.numbers), self._shape[-1]), np.float32)
        chosen[range(len(self.numbers)), [ids[number][0] if number in ids else 0 for number in self.numbers]] = 1
        self._generator.set_logits(chosen.reshape(self._shape))
        self._generator.generate_next_token()  # takes the likeliest, and so what was chosen


class Model:
    """One folder of the GenAI builder."""

    def __init__(self, folder: str, room: int) -> None:
        self._model, self._room = og.Model(folder), room
        self._batches: list[Batch] = []

    def read(self, ids: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        known = {number for batch in self._batches for number in batch.numbers}
        self._batches = [batch for batch in self._batches if any(number in ids for number in batch.numbers)]
        for batch in self._batches:
            batch.read(ids)
        new = {number: tokens for number, tokens in ids.items() if number not in known}
        if new:
            self._batches.append(Batch(self._model, new, self._room))
        logits = [batch.logits() for batch in self._batches]
        return {number: found for each in logits for number, found in each.items() if number in ids}

    def forget(self) -> None:
        self._batches.clear()


def make(task: PeopleTask) -> TwoModels:
    """Files: base, persrm (merged), both from the GenAI builder."""
    base, persrm = (Model(task.files[name], task.room) for name in ("base", "persrm"))
    return TwoModels(base, persrm, task)


if __name__ == "__main__":
    serve(make, "onnxruntime-genai", "onnxruntime")

"""PAD-RT as one side of a comparison: a bundle's step graph, or its base graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.latency.peers.loop import PeerTask, serve
from pad_rt.bench.decoding import Decoding
from pad_rt.bench.steps import open_bundle
from pad_runtime.rows.plan import Reward, plan_rows


class Ours:
    """Files: bundle."""

    def __init__(self, task: PeerTask) -> None:
        bundle = open_bundle(Path(task.files["bundle"]), num_threads=task.threads)
        weights = tuple(bundle.manifest.persrms[0].default_weights)
        rewards = [Reward(0, weights, 1.0, tuple(task.reward_ids))]
        self._sides = {
            guided: Decoding(
                bundle.decoder(),
                [plan_rows(bundle.manifest, tuple(task.base_ids), rewards if guided else [], task.beta)],
                new_tokens=task.max_new_tokens,
                top_k=task.top_k,
            )
            for guided in (True, False)
        }

    def decode(self, guided: bool) -> Iterator[int]:
        side = self._sides[guided]
        yield side.prefill()[0]
        while True:
            yield side.step()[0]


if __name__ == "__main__":
    serve(Ours, "pad-rt", "onnxruntime")

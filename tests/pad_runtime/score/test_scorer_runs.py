"""A scorer's runs: on other devices, and when they are to end before their time."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_runtime.cancellation import Cancellation
from pad_runtime.devices.ort.execution_provider import EXECUTION_PROVIDERS
from pad_runtime.devices.ort.graph import OrtGraph
from pad_runtime.errors import CancelledError, DeviceError
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.score.request import RewardPrompt, ScoreRequest
from pad_runtime.score.scorer import Scorer
from tests.support import fake_cuda, fake_onnxruntime, fake_tensorrt, tiny_bundles, tiny_models
from tests.support.error_checks import refused

REQUESTS = [
    ScoreRequest((5, 17, 300), (14, 15, 9), (RewardPrompt(0, (60, 61, 5, 17, 300)), RewardPrompt(1, (5, 17, 300)))),
    ScoreRequest((9,), (3, 3, 200, 31, 77, 1), (RewardPrompt(1, (9, 9)),)),
]
LONG = ScoreRequest((5,) * 150, (6,) * 100, (RewardPrompt(0, (7,) * 150), RewardPrompt(1, (8,) * 150)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_family(tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def bundle(models: Path) -> Path:
    return tiny_bundles.export(models / "bundle", models / "base", [models / "one", models / "two"])


@pytest.fixture
def scorer(bundle: Path) -> Scorer:
    return Bundle(bundle, device="cpu", num_threads=1).scorer()


def assert_same(given: Any, expected: Any) -> None:
    for scores, others in zip(given, expected, strict=True):
        np.testing.assert_array_equal(scores.log_probs, others.log_probs)
        for phi, other in zip(scores.phi, others.phi, strict=True):
            np.testing.assert_array_equal(phi, other)


def test_a_simulated_gpu_scores_as_the_cpu_does(scorer: Scorer, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it captures is never a run of the scorer, and it gives back what it takes."""
    expected = scorer.score(REQUESTS, top_k=6)
    runtime = fake_cuda.install(monkeypatch)
    on_cuda = replace(EXECUTION_PROVIDERS["cuda"], float_types=("float32",))
    monkeypatch.setitem(EXECUTION_PROVIDERS, "cuda", on_cuda)
    log = fake_onnxruntime.install(monkeypatch.setattr, runtime)
    there = Bundle(bundle, device="cuda", num_threads=1).scorer()
    assert_same(there.score(REQUESTS, top_k=6), expected)
    assert set(log.runs) == {-1}
    taken = runtime.taken
    assert taken > 0
    there.score([LONG], top_k=6)
    gc.collect()
    assert runtime.taken == taken, "adapters and heads stay, and nothing of a run"
    del there
    gc.collect()
    assert runtime.taken == 0


def test_engines_have_no_score_graph(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = models / "standard"
    persrms = [models / "one", models / "two"]
    tiny_bundles.export(output, models / "base", persrms, dialect="standard", max_length=64, max_batch=2)
    fake_tensorrt.add_engines(output)
    runtime = fake_cuda.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_module(runtime))
    bundle = Bundle(output, device="tensorrt")
    with refused(DeviceError, given="the score graph on device 'tensorrt'", hint="pass --device cpu"):
        bundle.scorer()
    assert len(Bundle(output, device="cpu", num_threads=1).scorer().score(REQUESTS[1:], top_k=6)) == 1


@pytest.fixture
def at_start(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What another thread does while a run begins, and which runs came to their end."""
    seen: dict[str, Any] = {"do": lambda: None, "whole": []}
    bind = OrtGraph.bind

    def watched(self: OrtGraph, *args: Any, **options: Any) -> Callable[[], object]:
        real = bind(self, *args, **options)

        def run() -> None:
            seen["whole"].append(False)
            other = threading.Thread(target=seen["do"])
            other.start()
            other.join()
            real()
            seen["whole"][-1] = True

        return run

    monkeypatch.setattr(OrtGraph, "bind", watched)
    return seen


def test_another_thread_ends_a_run(scorer: Scorer, at_start: dict[str, Any]) -> None:
    expected = scorer.score(REQUESTS, top_k=6)
    cancellation = Cancellation()
    at_start["whole"].clear()
    at_start["do"] = cancellation.want
    with pytest.raises(CancelledError, match="the scoring of replies was cancelled"):
        scorer.score([LONG], top_k=6, cancellation=cancellation)
    assert at_start["whole"] == [False]
    at_start["do"] = lambda: None
    assert_same(scorer.score(REQUESTS, top_k=6), expected)
    scorer.score([LONG], top_k=6)
    assert at_start["whole"][-1]  # it does end where nobody wants otherwise


def test_a_wish_beforehand_lets_nothing_run(scorer: Scorer, at_start: dict[str, Any]) -> None:
    cancellation = Cancellation()
    cancellation.want()
    with pytest.raises(CancelledError, match="the scoring of replies was cancelled"):
        scorer.score(REQUESTS, top_k=6, cancellation=cancellation)
    assert not any(at_start["whole"])


def test_ctrl_c_ends_a_run(scorer: Scorer, at_start: dict[str, Any]) -> None:
    expected = scorer.score(REQUESTS, top_k=6)
    at_start["do"] = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        scorer.score([LONG], top_k=6)
    at_start["do"] = lambda: None
    assert_same(scorer.score(REQUESTS, top_k=6), expected)

"""Two bundles of one shape and other weights: whatever is mixed of them, sizes do not tell."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pad_rt import EncodedPrompt, GenerationConfig, Generator, Preference
from tests.support import tiny_bundles, tiny_models

REQUESTS: dict[str, Any] = {
    "guided": Preference(weights={"one": 2.0}),
    "another adapter": Preference(weights={"two": 2.0}),
    "base": None,
}


@dataclass(frozen=True)
class Pair:
    """A bundle, and another that takes its place; `tokens` are of the first by request, `others` of the other."""

    first: Path
    second: Path
    tokens: dict[str, tuple[int, ...]]
    others: dict[str, tuple[int, ...]]

    def copy(self, folder: Path) -> Path:
        """The first, to be changed."""
        return Path(shutil.copytree(self.first, folder / "bundle"))


def reply(generator: Generator, request: str, *, num_tokens: int = 12) -> tuple[int, ...]:
    """Token ids of a greedy reply."""
    preference = REQUESTS[request]
    prompt = EncodedPrompt([5, 6, 7, 8], [9, 10, 11] if preference else None)
    config = GenerationConfig(max_new_tokens=num_tokens, top_k=20, beta=1.5)
    return generator.generate(prompt, preference=preference, config=config).token_ids


@pytest.fixture(scope="session", params=["fp32", "int4"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("snapshot")
    bundles = []
    for seed in (50, 60):
        at = folder / str(seed)
        tiny_models.make_base(at / "base", "llama", seed=seed, hidden_size=96, intermediate_size=128)
        for index, name in enumerate(("one", "two")):
            tiny_models.make_adapter(at / name, at / "base", seed=seed + 1 + index)
        tiny_models.make_head(at / "one", 96, seed=seed + 3)
        persrms = [at / "one", at / "two"]
        bundles.append(tiny_bundles.export(at / "bundle", at / "base", persrms, precision=request.param))
    tokens = [{name: reply(tiny_bundles.load(bundle), name) for name in REQUESTS} for bundle in bundles]
    assert all(tokens[0][name] != tokens[1][name] for name in REQUESTS), "the control: another model replies otherwise"
    return Pair(*bundles, *tokens)


@pytest.fixture
def bundle(pair: Pair, tmp_path: Path) -> Path:
    return pair.copy(tmp_path)


@pytest.fixture
def say() -> Callable[..., tuple[int, ...]]:
    return reply

"""A tiny guided model behind a server, and the official client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from pad_rt.api.guidance import Guidance
from tests.support import tiny_bundles
from tests.support.guided_models import Models
from tests.support.live_server import LiveServer, serve

END = 2  # a token that ends replies, and seldom comes by itself
PEOPLE = {
    "anna": Guidance(weights={"kind": 1.5, "brief": -0.75}, beta=1.25),
    "ben": Guidance(preference="be kind", top_k=6),
}


@pytest.fixture(scope="session")
def served_bundle(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two PersRMs: one reads words, one has the features kind, brief and odd."""
    persrms = [models.folder / "plain", models.folder / "many"]
    folder = tmp_path_factory.mktemp("served") / "tiny"
    return tiny_bundles.export(folder, models.folder / "base", persrms, eos=[END], max_top_k=20, max_batch=3)


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    with serve(tiny_bundles.load(served_bundle), people=PEOPLE) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client

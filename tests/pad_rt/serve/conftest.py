"""A tiny guided model behind a server, and the official client."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from pad_rt.api.guidance import Guidance
from tests.support import tiny_bundles
from tests.support.guided_models import Models
from tests.support.live_server import LiveServer, serve

PEOPLE = {
    "anna": Guidance(weights={"kind": 1.5, "brief": -0.75}, beta=1.25),
    "ben": Guidance(preference="be kind", top_k=6),
}


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[LiveServer]:
    with serve(tiny_bundles.load(models.bundle("base")), people=PEOPLE) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client

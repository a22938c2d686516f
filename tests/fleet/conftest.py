"""A Ray cluster of this machine, bundles, and what a generator alone replies with them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

os.environ |= {  # read when Ray is imported: the tests' own key, so that none is written into the user's home
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
}

import openai
import pytest
import ray
from ray import serve

from pad_rt import Generator, Preference
from pad_rt.serve.fleet import application
from tests.support import tiny_bundles, tiny_models

_NUMBERS = count()
MAX_BATCH = 2  # so that a replica takes four requests, and six need two
CHEERFUL = {"weights": {"cheerful": 1.0}}


@dataclass(frozen=True)
class Bundles:
    """Two bundles, of other PersRMs, and their generators."""

    folders: dict[str, Path]
    generators: dict[str, Generator]

    def reply(self, name: str, prompt: str, weight: float | None, **config: Any) -> str:
        """What a generator replies that nobody else asks, in this process."""
        preference = None if weight is None else Preference(weights={"cheerful": weight})
        return self.generators[name].generate(prompt, preference=preference, config=config).text


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("fleet")
    tiny_models.make_base(folder / "base", "llama", seed=1, max_position_embeddings=2048)
    folders = {}
    for name, seed in (("sunny", 2), ("cloudy", 3)):
        tiny_models.make_adapter(folder / name / "cheerful", folder / "base", seed=seed)
        persrms = [folder / name / "cheerful"]
        folders[name] = tiny_bundles.export(
            folder / "bundles" / name, folder / "base", persrms, max_batch=MAX_BATCH, max_top_k=20, max_length=2048
        )
    return Bundles(folders, {name: tiny_bundles.load(path) for name, path in folders.items()})


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a cluster that is here as long as the tests."""
    folder = tempfile.mkdtemp(prefix="pad-ray-", dir="/tmp")  # short: Unix sockets lie in it
    try:
        context = ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
        )
        yield context.address_info["gcs_address"]
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def proxy(cluster: str) -> Iterator[str]:
    """The address of Ray Serve's proxy."""
    with socket.socket() as free:  # Ray tells no port that it picks by itself
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


Deploy = Callable[..., str]


@pytest.fixture
def deploy(proxy: str, bundles: Bundles) -> Iterator[Deploy]:
    """Deploys a fleet of bundles, and returns the address of its API; it is gone after the test."""

    name = f"fleet-{next(_NUMBERS)}"  # a proxy keeps how it routes to an app, by the app's name

    def run(*names: str, **options: Any) -> str:
        paths = ",".join(str(bundles.folders[name]) for name in names)
        arguments = {"bundles": paths, "cpus": "0.3", **{name: str(value) for name, value in options.items()}}
        serve.run(application(arguments), name=name, route_prefix="/fleet", logging_config={"log_level": "ERROR"})
        return f"{proxy}/fleet/v1"

    try:
        yield run
    finally:
        serve.delete(name)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    file = tmp_path / "people.json"
    file.write_text(json.dumps({"anna": CHEERFUL}))
    return file


def client_of(url: str, **options: Any) -> openai.OpenAI:
    """The official client, as its users have it."""
    return openai.OpenAI(base_url=url, api_key="none", timeout=120, **options)

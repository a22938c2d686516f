"""The clients of `make serve-load`: they find what is wrong with a server, and nothing if it is right."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serve.clients import MAX_BODY_MIB, Load
from benchmarks.serve.wish import MODEL, make_people, make_wish
from pad_rt import Generator
from pad_rt.api.guidance import Guidance
from pad_rt.serve.models import LoadedModels
from pad_rt.serve.settings import ServeSettings
from tests.support import tiny_bundles, tiny_models
from tests.support.live_server import run

FEATURES = ("kind", "brief", "odd")


def make_bundle(folder: Path, seed: int) -> Path:
    """A tiny base, which decides the replies, with a PersRM of three features."""
    base, persrm = folder / "base", folder / "persrm"
    tiny_models.make_base(base, "llama", seed=seed, max_position_embeddings=1024)
    tiny_models.make_adapter(persrm, base, seed=44)
    tiny_models.make_head(persrm, 84, d=3, seed=46)
    (persrm / "pad_persrm.json").write_text(json.dumps({"prompt_template": "[{p}] {x}", "features": FEATURES}))
    return tiny_bundles.export(folder / "tiny", base, [persrm], eos=[2], max_batch=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("served"), seed=41)


@pytest.fixture(scope="module")
def port(bundle: Path) -> Iterator[int]:
    people = {name: Guidance.read(pad) for name, pad in make_people(FEATURES).items()}
    generator = tiny_bundles.load(bundle)
    with run(LoadedModels(lambda: {MODEL: generator}, people), ServeSettings(max_body_mib=MAX_BODY_MIB)) as port:
        yield port


def load(port: int, alone: Generator) -> Load:
    """Eight clients for a while; every reply is computed again."""
    load = Load(port, alone, FEATURES, time.monotonic() + 2, check_every=1)
    asyncio.run(load.run(8, seed=1))
    assert load.num_checked > 0
    return load


def test_a_server_that_is_right(port: int, bundle: Path) -> None:
    with tiny_bundles.load(bundle) as alone:
        found = load(port, alone)
    assert found.wrong == []
    assert found.failures == []
    assert found.first_s


def test_replies_of_another_model_are_wrong(port: int, tmp_path: Path) -> None:
    with tiny_bundles.load(make_bundle(tmp_path, seed=42)) as alone:
        assert load(port, alone).wrong


def test_a_refusal_is_a_failure(port: int, bundle: Path) -> None:
    """A server without the people that the requests name."""
    generator = tiny_bundles.load(bundle)
    with (
        run(LoadedModels(lambda: {MODEL: generator}, {}), ServeSettings()) as other,
        tiny_bundles.load(bundle) as alone,
    ):
        failures = load(other, alone).failures
    assert any("404" in failure for failure in failures)
    assert any("too large: 200" in failure for failure in failures)  # 4 MiB are its limit


def test_a_body_and_its_call_say_the_same() -> None:
    for seed in range(200):
        wish = make_wish(random.Random(seed), FEATURES)
        assert wish.config.max_new_tokens == wish.body["max_tokens"]
        assert wish.config.seed == wish.body["seed"]
        assert (":" in wish.body["model"]) <= bool(wish.pad)

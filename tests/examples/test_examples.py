"""The examples, run as their first lines say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
import uvicorn

from pad_rt import GenerationConfig, Generator, Preference
from tests.support import tiny_bundles, tiny_models
from tests.support.live_server import LiveServer, serve, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "How was your day?"
KIND = Preference(weights={"kind": 2.0})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a PersRM with two features."""
    folder = tmp_path_factory.mktemp("examples")
    tiny_models.make_base(folder / "base", "llama", seed=41, max_position_embeddings=512)
    tiny_models.make_adapter(folder / "many", folder / "base", seed=44, rank=5)
    tiny_models.make_head(folder / "many", 84, d=2, seed=46)
    settings = {"prompt_template": "{x}", "features": ["kind", "brief"]}
    (folder / "many" / "pad_persrm.json").write_text(json.dumps(settings))
    return tiny_bundles.export(folder / "tiny", folder / "base", [folder / "many"], eos=[2], max_top_k=20, max_batch=3)


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Generator:
    return tiny_bundles.load(bundle)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[LiveServer]:
    with serve(tiny_bundles.load(bundle)) as running:
        yield running


def run(*command: str, stdin: str = "") -> str:
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONIOENCODING": "utf-8"}
    ended = subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", check=False, timeout=300, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_chat(bundle: Path, generator: Generator) -> None:
    lines = f"{QUESTION}\nkind=2\nAnd now?\nkind=much\n\nunknown=1\n"
    printed = run(sys.executable, str(EXAMPLES / "chat.py"), str(bundle), stdin=lines)
    assert printed.startswith("sliders: kind, brief\n")
    chat = generator.conversation(config=GenerationConfig(offer_end=True))
    first = chat.say(QUESTION).text
    chat.preference = KIND
    second = chat.say("And now?").text
    assert f"{first}\n{second}\ncould not convert string to float: 'much'\n" in printed
    assert second != generator.generate("And now?", config=GenerationConfig(offer_end=True)).text


def test_fastapi(bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAD_BUNDLE", str(bundle))
    server = uvicorn.Server(uvicorn.Config("examples.fastapi_app:app", port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        assert ask(port, "POST", "/users/anna/replies", QUESTION) == (200, generator.generate(QUESTION).text)
        assert ask(port, "PUT", "/users/anna", {"kind": 2.0}) == (200, '{"kind":2.0}')
        guided = generator.generate(QUESTION, preference=KIND).text
        assert ask(port, "POST", "/users/anna/replies", QUESTION) == (200, guided)
        assert ask(port, "POST", "/users/ben/replies", QUESTION)[1] != guided
        ask(port, "PUT", "/users/anna", {"unknown": 1.0})
        status, text = ask(port, "POST", "/users/anna/replies", QUESTION)
        assert status == 400
        assert "unknown" in text
    finally:
        server.should_exit = True
        thread.join(60)


def ask(port: int, method: str, path: str, body: object) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_langchain(server: LiveServer) -> None:
    pytest.importorskip("langchain_openai")
    weights = json.dumps(KIND.weights)
    printed = run(sys.executable, str(EXAMPLES / "langchain_chat.py"), "tiny", weights, server.url)
    config = GenerationConfig(max_new_tokens=64)
    base = server.generator.generate(QUESTION, config=config).text
    guided = server.generator.generate(QUESTION, preference=KIND, config=config).text
    assert base != guided
    assert printed == f"base: {base}\nperson: {guided}\n"


def test_fetch(server: LiveServer) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node here")
    printed = run(node, str(EXAMPLES / "fetch.mjs"), "tiny", json.dumps(KIND.weights), server.url)
    config = GenerationConfig(max_new_tokens=64)
    assert printed == server.generator.generate(QUESTION, preference=KIND, config=config).text + "\n"
    refused = subprocess.run(
        [node, str(EXAMPLES / "fetch.mjs"), "none", "{}", server.url], capture_output=True, text=True, check=False
    )
    assert "the model 'none' does not exist" in refused.stderr

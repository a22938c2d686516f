"""Bundles by name, from a hub on this machine: huggingface_hub itself asks it, in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pad_rt import Generator
from pad_rt.hub import bundle_name, find_bundle
from tests.support.error_checks import edit_manifest, snapshot
from tests.support.fake_hub import FakeHub

NAME = "org/tiny"
SPEAK = ("hello", "--max-new-tokens", "5", "--threads", "1", "--json")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub().running() as hub:
        yield hub


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def generate(hub: FakeHub, home: Path, name: str, **variables: str) -> list[int]:
    ended = hub.run(home, "pad", "generate", name, *SPEAK, **variables)
    assert ended.returncode == 0, ended.stderr
    ids: list[int] = json.loads(ended.stdout)["token_ids"]
    return ids


def refusal(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert sum(line.startswith("pad: error: ") for line in lines) == 1
    assert "Traceback" not in ended.stderr
    return lines[-1]


def cached(home: Path, name: str = NAME) -> Path:
    """The only snapshot of a repository in the cache."""
    (folder,) = (home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots").iterdir()
    return folder


def test_a_name_gives_the_tokens_of_the_folder(hub: FakeHub, bundle: Path, home: Path) -> None:
    commit = hub.publish(NAME, bundle)
    expected = generate(hub, home, str(bundle))
    assert not hub.requests, "a path asks nobody"
    assert generate(hub, home, NAME) == expected
    folder = cached(home)
    assert folder.name == commit
    assert all(path.is_symlink() for path in folder.iterdir() if path.is_file()), "loaded through links"
    assert snapshot(folder) == snapshot(bundle)


def test_a_second_load_needs_no_network(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    first = generate(hub, home, NAME)
    asked = hub.requests.copy()
    assert generate(hub, home, NAME) == first
    again = hub.requests - asked
    assert [request for request in again if "/resolve/" in request] == [f"HEAD /{NAME}/resolve/main/pad.json"]
    asked = hub.requests.copy()
    assert generate(hub, home, NAME, HF_HUB_OFFLINE="1") == first
    assert hub.requests == asked, "offline asks nobody"


def test_a_second_load_needs_no_hub(bundle: Path, home: Path) -> None:
    with FakeHub().running() as hub:
        hub.publish(NAME, bundle)
        first = generate(hub, home, NAME)
    assert generate(hub, home, NAME) == first
    assert generate(hub, home, f"{NAME}@main", HF_HUB_OFFLINE="1") == first


def test_the_api_takes_names(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    expected = Generator.load(bundle, num_threads=1).generate("hello", config={"max_new_tokens": 5})
    code = (
        "import sys; from pad_rt import Generator\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        f"generator = Generator.load({NAME!r}, num_threads=1)\n"
        "print(list(generator.generate('hello', config={'max_new_tokens': 5}).token_ids))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=hub.environment(home), cwd=home, check=True
    )
    assert json.loads(ended.stdout) == list(expected.token_ids)


@pytest.mark.parametrize("command", ["info", "score", "bench"])
def test_every_command_takes_names(command: str, hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    arguments = {
        "info": [],
        "score": ["hello", "you", "--threads", "1"],
        "bench": ["--prompt-tokens", "4", "--new-tokens", "2", "--rounds", "1", "--threads", "1"],
    }[command]
    ended = hub.run(home, "pad", command, NAME, *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)


def test_a_server_takes_names(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    with hub.start(home, "pad", "serve", NAME, "--port", "0", "--no-page") as server:
        assert server.stdout is not None
        try:
            ready = next(line for line in map(bytes.decode, server.stdout) if " is ready: " in line)
            with urllib.request.urlopen(ready.split()[0] + "/v1/models", timeout=60) as answer:
                (model,) = json.load(answer)["data"]
        finally:
            server.terminate()
    assert model["id"] == bundle_name(NAME) == "tiny"


def test_names_of_bundles(tmp_path: Path) -> None:
    assert bundle_name("org/tiny@v1") == "tiny"
    assert bundle_name(tmp_path / "cheerful") == bundle_name(str(tmp_path / "cheerful")) == "cheerful"
    assert bundle_name("org/tiny/a.gguf") == "a.gguf", "a file is no bundle, so this is a path"


def test_an_existing_folder_wins(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    shutil.copytree(bundle, home / "org" / "tiny")
    edit_manifest(home / "org" / "tiny", base="the folder")
    ended = hub.run(home, "pad", "info", NAME, "--json")
    assert json.loads(ended.stdout)["manifest"]["base"] == "the folder"
    assert not hub.requests
    assert find_bundle("./" + NAME) == Path("org/tiny"), "never a name"


def test_a_new_commit_is_taken_and_a_pinned_one_stays(hub: FakeHub, bundle: Path, home: Path) -> None:
    first = hub.publish(NAME, bundle)
    hub.publish(NAME, bundle, revision="v1")
    assert base_of(hub, home, NAME) == "llama"
    edit_manifest(bundle, base="the second")
    second = hub.publish(NAME, bundle)
    assert first != second
    assert base_of(hub, home, NAME) == "the second"
    assert base_of(hub, home, f"{NAME}@v1") == "llama"
    asked = hub.requests.copy()
    assert base_of(hub, home, f"{NAME}@{first}") == "llama"
    assert not [request for request in hub.requests - asked if NAME in request], "a whole commit is asked for by nobody"
    assert base_of(hub, home, f"{NAME}@v1", HF_HUB_OFFLINE="1") == "llama"
    assert base_of(hub, home, NAME, HF_HUB_OFFLINE="1") == "the second"


def base_of(hub: FakeHub, home: Path, name: str, **variables: str) -> str:
    ended = hub.run(home, "pad", "info", name, "--json", **variables)
    assert ended.returncode == 0, ended.stderr
    base: str = json.loads(ended.stdout)["manifest"]["base"]
    return base


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    hub.cut_after = 15_000
    ended = hub.run(home, "pad", "pull", NAME)
    assert ended.returncode == 0, ended.stderr
    assert hub.cut_after is None, "it broke"
    assert [0 < int(asked.strip("bytes=-")) <= 15_000 for asked in hub.ranges] == [True]
    assert snapshot(cached(home)) == snapshot(bundle)


def test_a_pull_that_was_killed_is_taken_up(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    cut = threading.Event()
    killed = threading.Event()
    hub.cut_after, hub.at_cut = 15_000, lambda: (cut.set(), killed.wait(60))
    with hub.start(home, "pad", "pull", NAME) as pull:
        assert cut.wait(60)
        pull.kill()
    killed.set()
    assert "not whole in the hub's cache" in refusal(hub.run(home, "pad", "generate", NAME, *SPEAK, HF_HUB_OFFLINE="1"))
    whole = {path.name for path in (cached(home).parent.parent / "blobs").iterdir() if path.suffix != ".incomplete"}
    assert whole, "some files were whole"
    asked = hub.requests.copy()
    assert hub.run(home, "pad", "pull", NAME).returncode == 0
    assert snapshot(cached(home)) == snapshot(bundle)
    twice = [request for request in hub.requests - asked if request.startswith("GET /stored/") and request in asked]
    assert len(twice) == 1, "what was cut, and nothing else"
    assert twice[0].removeprefix("GET /stored/") not in whole


def test_what_is_fetched_is_hashed_once(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    assert generate(hub, home, NAME)
    (record,) = (home / "assets").rglob("*.json")
    written = record.stat().st_mtime_ns
    assert generate(hub, home, NAME)
    assert record.stat().st_mtime_ns == written
    weights = cached(home) / "weights.bin"
    os.utime(weights, ns=(1, 1))
    assert generate(hub, home, NAME)
    assert record.stat().st_mtime_ns > written, "touched files are hashed again"


def test_a_changed_file_is_noticed(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    assert generate(hub, home, NAME)
    weights = cached(home) / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.resolve().write_bytes(content)
    line = refusal(hub.run(home, "pad", "generate", NAME, *SPEAK, HF_HUB_OFFLINE="1"))
    assert "weights.bin was altered" in line
    assert f"`hf cache rm model/{NAME}` and fetch it again" in line


def test_a_repository_whose_files_are_not_its_manifests_is_refused_every_time(
    hub: FakeHub, bundle: Path, home: Path
) -> None:
    content = bytearray((bundle / "weights.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "weights.bin").write_bytes(content)
    hub.publish(NAME, bundle)
    for _ in range(2):
        assert "weights.bin was altered" in refusal(hub.run(home, "pad", "generate", NAME, *SPEAK))


def test_a_cache_that_cannot_be_written_is_read(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    first = generate(hub, home, NAME)
    shutil.rmtree(home / "assets")
    (home / "assets").write_text("in the way of the record")
    assert generate(hub, home, NAME, HF_HUB_OFFLINE="1") == first


def test_only_the_bundles_files_are_fetched(hub: FakeHub, bundle: Path, home: Path) -> None:
    (bundle / "README.md").write_text("a card")
    (bundle / "model.safetensors").write_bytes(bytes(100_000))
    hub.publish(NAME, bundle)
    assert generate(hub, home, NAME)
    assert {path.name for path in bundle.iterdir()} - {path.name for path in cached(home).iterdir()} == {
        "README.md",
        "model.safetensors",
    }


def test_a_private_repository_takes_its_token(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    hub.repositories[NAME].token = "secret"
    for wrong in ({}, {"HF_TOKEN": "wrong"}):
        line = refusal(hub.run(home, "pad", "pull", NAME, **wrong))
        assert "no such repository on the hub" in line
        assert "HF_TOKEN" in line
        assert "wrong" not in line
    assert hub.run(home, "pad", "pull", NAME, HF_TOKEN="secret").returncode == 0


def test_refusals(hub: FakeHub, bundle: Path, home: Path) -> None:
    hub.publish(NAME, bundle)
    hub.publish("org/model", bundle / "adapters")
    hub.publish("org/gated", bundle)
    hub.repositories["org/gated"].is_gated = True
    hub.publish("org/partial", bundle)
    del hub.repositories["org/partial"].commits[hub.repositories["org/partial"].refs["main"]]["weights.bin"]
    for name, part in {
        "org/nothing": "no path org/nothing here, and no such repository on the hub",
        "build/bundle": "no path build/bundle here",
        f"{NAME}@v9": f"{NAME} has no revision v9; expected a branch, tag or commit",
        "org/gated": "org/gated is gated; expected the token of an account that was given access",
        "org/model": "org/model has no pad.json; expected a repository with a bundle of pad-export at its top",
        "org/partial": "has no weights.bin; expected every file of its pad.json",
    }.items():
        assert part in refusal(hub.run(home, "pad", "generate", name, *SPEAK)), name
    hub.statuses[NAME] = 503
    assert "the hub answered 503 when asked for org/tiny" in refusal(hub.run(home, "pad", "generate", NAME, *SPEAK))
    offline = refusal(hub.run(home, "pad", "generate", NAME, *SPEAK, HF_HUB_OFFLINE="1"))
    assert "not whole in the hub's cache, and HF_HUB_OFFLINE is set" in offline


def test_no_network(bundle: Path, home: Path) -> None:
    with FakeHub().running() as hub:
        pass
    line = refusal(hub.run(home, "pad", "generate", NAME, *SPEAK))
    assert "not whole in the hub's cache, and the hub cannot be reached" in line


def test_without_the_extra(home: Path) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None; from pad_rt.cli.main import main; "
        "sys.exit(main(['generate', 'org/tiny', 'hi']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home, check=False)
    assert "huggingface_hub is not installed" in refusal(ended)
    assert "pip install 'pad-rt[hub]'" in ended.stderr

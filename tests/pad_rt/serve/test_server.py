"""`pad serve` from its start to its end, as a process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path

import pytest

from pad_rt.cli.main import main
from tests.support import tiny_bundles, tiny_models
from tests.support.error_checks import error_line
from tests.support.live_server import wait_until
from tests.support.pad_server import CHAT, WAIT_S, PadServer, python, serve, text_of

LONG = 1000  # tokens: seconds of work, which a signal comes in the middle of


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose replies are as long as is asked for."""
    folder = tmp_path_factory.mktemp("served")
    tiny_models.make_base(folder / "base", "llama", seed=1, max_position_embeddings=4096)
    tiny_models.make_adapter(folder / "cheerful", folder / "base", seed=2)
    return tiny_bundles.export(folder / "bundle", folder / "base", [folder / "cheerful"], max_batch=3, max_top_k=20)


@pytest.fixture
def server(bundle: Path) -> Iterator[PadServer]:
    with serve(bundle, "--max-new-tokens", str(LONG)) as server:
        server.wait_until_ready()
        yield server


# -- the start ------------------------------------------------------------------------------------------------------


def slow_to_load(gate: Path) -> list[str]:
    """`pad`, whose bundles open once a file is there."""
    return python(
        "import os, time\nfrom pad_rt import Generator\nload = Generator.load\n"
        f"def wait_and_load(*arguments, **options):\n    while not os.path.exists({str(gate)!r}):\n"
        "        time.sleep(0.01)\n    return load(*arguments, **options)\nGenerator.load = wait_and_load"
    )


def a_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_health_answers_while_the_bundle_loads(bundle: Path, tmp_path: Path) -> None:
    gate, port = tmp_path / "gate", a_free_port()
    with serve(bundle, "--port", str(port), program=slow_to_load(gate)) as server:
        server.wait_until_listening(port)
        for refused in (server.ask("GET", "/health"), server.chat()):
            assert (refused.status, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"]["code"] == "loading"
        gate.touch()
        url = f"http://127.0.0.1:{port}"
        line = f"{url} is ready: the page for a browser, and OpenAI's API at {url}/v1 (model 'bundle')\n"
        assert server.wait_until_ready() == line
        assert (server.ask("GET", "/health").status, server.chat(max_tokens=3).status) == (200, 200)
        server.signal()
        assert server.wait() == 0


def test_a_server_that_still_loads_ends_at_once(bundle: Path, tmp_path: Path) -> None:
    port = a_free_port()
    with serve(bundle, "--port", str(port), program=slow_to_load(tmp_path / "gate")) as server:
        server.wait_until_listening(port)
        assert server.ask("GET", "/health").status == 503
        server.signal()
        assert server.wait() == 0


def test_what_cannot_be_served_is_one_line(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = tmp_path / "people.json"
    people.write_text("[]")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for arguments, words in (
            ([bundle, "--port", port], f"--host 127.0.0.1 --port {port}: Address already in use; expected an address"),
            ([bundle, "--port", "0", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 0: Cannot assign requested"),
            ([bundle, "--port", "0", "--host", "nowhere.invalid"], "--host nowhere.invalid --port 0: "),
            ([bundle, "--port", "0", "--host", "a..b"], "--host a..b --port 0: "),
            ([tmp_path / "absent", "--port", "0"], f"no bundle at {tmp_path / 'absent'}"),
            ([bundle, "--port", "0", "--people", people], "people.json"),
            ([bundle, bundle, "--port", "0"], "bundles named bundle, bundle"),
        ):
            assert main(["serve", *map(str, arguments)]) == 2
            out, err = capsys.readouterr()
            assert words in error_line(err, "pad")
            assert (out, err.count("\n")) == ("", 1)


def test_the_extra_is_not_installed(bundle: Path) -> None:
    """Only the run needs it: wrong options are told of without. Packages are missing in the order of their imports."""
    code = f"""
import sys
from pad_rt.cli.main import main
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == absent:
            raise ModuleNotFoundError(name=absent)
sys.meta_path.insert(0, Absent())
absent = "starlette"
print(main(["serve", "x", "--port", "x"]))
for absent in ("uvicorn", "starlette", "prometheus_client"):
    print(main(["serve", {str(bundle)!r}, "--port", "0"]))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S)
    assert ended.stdout == "2\n" * 4
    assert ended.stderr.splitlines() == [
        "pad: error: --port 'x'; expected a port, 0 to 65535 (0: any that is free)",
        *(
            f"pad: error: {package} is not installed; pip install 'pad-rt[serve]'"
            for package in ("uvicorn", "starlette", "prometheus_client")
        ),
    ]


# -- the end --------------------------------------------------------------------------------------------------------


def test_a_signal_lets_running_replies_end(server: PadServer) -> None:
    """Whole, while new requests are refused, also those on connections that were open before."""
    expected = server.chat(max_tokens=LONG).json()["choices"][0]["message"]["content"]
    kept = HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    with closing(kept), server.stream(max_tokens=LONG) as stream:
        kept.request("GET", "/health")
        assert kept.getresponse().read() == b'{"status":"ok"}'
        server.signal()
        assert server.read_line() == "the server ends once what runs (1) has ended; a second signal ends it at once\n"
        kept.request("GET", "/health")
        response = kept.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (503, "draining")
        refused = server.chat()
        assert (refused.status, refused.headers["retry-after"]) == (503, "30")
        events = stream.read()
    assert text_of(events) == expected
    assert events.endswith(b"data: [DONE]\n\n")
    assert server.wait() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_server_at_once(server: PadServer, number: int, code: int) -> None:
    with server.stream(max_tokens=LONG) as stream:
        server.signal(number)
        assert server.read_line().startswith("the server ends once what runs (1) has ended")
        server.signal(number)
        assert server.wait() == code
        with pytest.raises((ConnectionResetError, IncompleteRead)):
            stream.read()


def test_replies_that_take_longer_than_the_drain_end_with_an_error(bundle: Path) -> None:
    """And half-sent requests, which are none yet, do not hold the end up."""
    with ExitStack() as stack:
        server = stack.enter_context(serve(bundle, "--max-new-tokens", str(LONG), "--drain-timeout", "0.1"))
        server.wait_until_ready()
        stream = stack.enter_context(server.stream(max_tokens=LONG))
        for half in (
            b"",
            b"POST /v1",
            b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n",
        ):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S))
            connection.sendall(half)
        assert server.ask("GET", "/health").status == 200, "by now the server has read what they sent"
        server.signal()
        last = [line for line in stream.read().splitlines() if line][-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "cancelled"
        assert server.wait() == 0
        statuses = [json.loads(line)["status"] for line in server.read_rest()[1].splitlines()]
        assert 503 in statuses


# -- in between -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "keys"), [([], {}), (["--log-prompts"], {"PAD_API_KEY": "open"})])
def test_what_a_server_writes(bundle: Path, flags: list[str], keys: dict[str, str]) -> None:
    """A line a request; before, a warning where anybody may call. Prompts and replies only if asked for."""
    with serve(bundle, "--host", "0.0.0.0", "--no-page", *flags, environment=keys) as server:
        line = server.wait_until_ready()
        url = f"http://127.0.0.1:{server.port}"
        assert line == f"{url} is ready: OpenAI's API at {url}/v1 (model 'bundle')\n"
        if keys:
            server.headers["authorization"] = "Bearer open"
        whole = server.chat(max_tokens=5, user="u-1")
        with server.stream(max_tokens=5) as stream:
            stream.read()
        assert server.chat(model="boil an egg").status == 404
        assert server.ask("GET", "/v1/models?key=sesame").status == 200
        with server.stream(max_tokens=LONG):
            pass
        wait_until(lambda: b'status="499"' in server.ask("GET", "/metrics").body)
        server.signal()
        assert server.wait() == 0
        err = server.read_rest()[1]
    warning = f"pad: whoever reaches 0.0.0.0:{server.port} can use this server; set PAD_API_KEY to ask for a key"
    assert (warning in err) == (not keys)
    lines = [json.loads(line) for line in err.splitlines() if line != warning]
    assert [(line["path"], line["status"]) for line in lines] == [
        (CHAT, 200),
        (CHAT, 200),
        (CHAT, 404),
        ("/v1/models", 200),
        (CHAT, 499),
    ]
    first = lines[0]
    assert first["id"] == whole.headers["x-request-id"]
    assert (first["user"], first["model"], first["finish_reason"]) == ("u-1", "bundle", "length")
    assert first["prompt_tokens"] == whole.json()["usage"]["prompt_tokens"] == lines[1]["prompt_tokens"]
    assert first["completion_tokens"] == 5
    assert ("boil an egg" in err) == ("prompt" in first) == ("reply" in lines[1]) == bool(flags)
    assert "sesame" not in err
    assert str(bundle) not in err

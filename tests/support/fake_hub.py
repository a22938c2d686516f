"""A Hugging Face hub on this machine: what huggingface_hub asks for when it fetches files of a model repository."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LARGE = 20_000  # bytes; larger files are stored elsewhere, as git LFS does, and asked for by their SHA-256
_API = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_STORED = re.compile(r"/stored/(?P<digest>[0-9a-f]{64})")


@dataclass
class FakeRepository:
    """A repository; `commits` maps a commit to its files, `refs` a branch or tag to its commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False
    token: str | None = None  # that one must send; None for a public repository

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch, tag or commit."""
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class FakeHub:
    """Listens on a port of 127.0.0.1 while `running`.

    Attributes:
        url: its address, for HF_ENDPOINT.
        storage_url: where large files are, on a host of another name.
        requests: how often each was made, such as "GET /org/name/resolve/main/pad.json".
        ranges: values of the Range headers that came.
        cut_after: once, break off a large file after this many bytes.
        at_cut: called before the connection ends.
        statuses: by a part of a path, the status that such requests are answered with.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, FakeRepository] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.cut_after: int | None = None
        self.at_cut: Callable[[], object] = lambda: None
        self.statuses: dict[str, int] = {}
        self.url = self.storage_url = ""

    def publish(self, name: str, folder: Path, *, revision: str = "main") -> str:
        """A commit of a folder's files as they are now, to a branch; returns its hash."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        digest = hashlib.sha1(repr(sorted((path, _sha256(content)) for path, content in files.items())).encode())
        repository = self.repositories.setdefault(name, FakeRepository())
        repository.commits[digest.hexdigest()] = files
        repository.refs[revision] = digest.hexdigest()
        return digest.hexdigest()

    def environment(self, home: Path, **variables: str) -> dict[str, str]:
        """Of a process that asks this hub and caches in `home`."""
        inherited = os.environ.items()
        kept = {name: value for name, value in inherited if not name.startswith("HF_") and "proxy" not in name.lower()}
        return kept | {"HF_HOME": str(home), "HF_ENDPOINT": self.url, "HF_HUB_ETAG_TIMEOUT": "10"} | variables

    def run(self, home: Path, command: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`pad` or `pad-export` in a process of its own: huggingface_hub reads the environment when it is imported."""
        return subprocess.run(
            _command(command, arguments),
            capture_output=True,
            text=True,
            check=False,
            cwd=home,
            env=self.environment(home, **variables),
        )

    def start(self, home: Path, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """The same, and not waited for; its output is to be read."""
        return subprocess.Popen(
            _command(command, arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=home,
            env=self.environment(home),
        )

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        """Answer requests within the block, and refuse connections after it."""
        hub = self

        class Handler(_Handler):
            fake = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.storage_url = f"http://localhost:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def stored(self, digest: str) -> bytes | None:
        """The content of a file by its SHA-256."""
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for content in files.values():
                    if _sha256(content) == digest:
                        return content
        return None


def _command(command: str, arguments: Sequence[str]) -> list[str]:
    """It does not wait before it asks again, which huggingface_hub does five times, and writes small pieces."""
    module = {"pad": "pad_rt.cli.main", "pad-export": "pad_export.cli"}[command]
    code = (
        "import sys, time; time.sleep = lambda seconds: None\n"
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 4096\n"
        f"from {module} import main; sys.exit(main())"
    )
    return [sys.executable, "-c", code, *arguments]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fake.requests[f"{self.command} {path}"] += 1
        failures = [status for part, status in self.fake.statuses.items() if part in path]
        if failures:
            self._send(failures[0])
        elif match := _STORED.fullmatch(path):
            content = self.fake.stored(match["digest"])
            self._send_file(content, has_body=has_body) if content is not None else self._send(404)
        elif match := _API.fullmatch(path) or _FILE.fullmatch(path):
            self._answer_repository(has_body=has_body, **match.groupdict())
        else:
            self._send(404)

    def _answer_repository(
        self, name: str, revision: str, *, has_body: bool, what: str = "file", path: str = ""
    ) -> None:
        repository = self.fake.repositories.get(name)
        sent = self.headers.get("Authorization")
        if repository is None or repository.token not in (None, (sent or "").removeprefix("Bearer ")):
            return self._send(404 if sent else 401, {"X-Error-Code": "RepoNotFound"})
        if repository.is_gated and what != "revision":  # about a gated repository everybody may know
            return self._send(403 if sent else 401, {"X-Error-Code": "GatedRepo"})
        found = repository.files(revision)
        if found is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if what == "revision":
            return self._send_json({"id": name, "sha": commit, "siblings": [{"rfilename": each} for each in files]})
        if what == "tree":
            return self._send_json([_entry(each, content) for each, content in files.items()])
        if path not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        digest = _sha256(files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(files[path])}"'}
        if len(files[path]) <= _LARGE:
            return self._send_file(files[path], headers, has_body=has_body)
        linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(files[path]))}
        return self._send(302, headers | linked | {"Location": f"{self.fake.storage_url}/stored/{digest}"})

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send_json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send_file(self, content: bytes, headers: dict[str, str] | None = None, *, has_body: bool) -> None:
        start = 0
        if (asked := self.headers.get("Range")) is not None:
            self.fake.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        part = content[start:]
        range_headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.send_response(206 if start else 200)
        for name, value in ((headers or {}) | range_headers | {"Content-Length": str(len(part))}).items():
            self.send_header(name, value)
        self.end_headers()
        if not has_body:
            return
        cut = self.fake.cut_after
        if cut is None or len(content) <= _LARGE:
            self.wfile.write(part)
            return
        self.fake.cut_after = None
        self.close_connection = True
        self.wfile.write(part[:cut])
        self.wfile.flush()
        self.fake.at_cut()


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
    if len(content) > _LARGE:
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
    return entry


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

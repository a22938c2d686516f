"""`pad serve` as a process of its own, on 127.0.0.1."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from benchmarks.common.process import last_line
from benchmarks.common.records import ROOT

_PAD = "import sys; from pad_rt.cli.main import main; sys.exit(main())"
_READY = re.compile(r"http://127\.0\.0\.1:(\d+) is ready")
_LOAD_S, _ASK_S = 120.0, 30.0


class ServerProcess:
    """A server that is ready; killed at the end of a `with` block if it runs then.

    Args:
        bundle: served as "bundle".
        flags: further flags of `pad serve`.
        log: takes its stderr, a line of JSON a request.
        cores: that it may run on; None: those of this process.

    Attributes:
        port: where it listens.
        log: that file.

    Raises:
        RuntimeError: it did not come up; says what its log ends with.
    """

    def __init__(self, bundle: Path, flags: Sequence[str], log: Path, cores: Collection[int] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _PAD, "serve", str(bundle), "--name", "bundle", "--port", "0", *flags]
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
        if cores is not None:
            os.sched_setaffinity(self._process.pid, cores)
        self.log = log
        try:
            self.port = self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> int:
        stdout = self._process.stdout
        assert stdout
        while select.select([stdout], [], [], _LOAD_S)[0]:
            line = stdout.readline()
            if found := _READY.match(line):
                return int(found[1])
            if not line:
                break
        raise RuntimeError(f"pad serve is not ready: {last_line(self.log)}")

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, patience: float) -> int | None:
        """The exit code; None if it has not ended within so many seconds."""
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it at once."""
        with self._process:  # closes its pipe
            self._process.kill()

    def metrics(self) -> dict[str, float]:
        """Each metric, summed over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=_ASK_S) as reply:
            lines = reply.read().decode().splitlines()
        sums: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    # -- of Linux's /proc ---------------------------------------------------------------------------------------------

    @property
    def num_files(self) -> int:
        """Open files and sockets, without those of ONNX Runtime's own records, which it opens when it likes."""
        count = 0
        for each in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                count += "onnxruntime.db" not in each.readlink().name
        return count

    @property
    def num_threads(self) -> int:
        """Threads."""
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    @property
    def private_mib(self) -> float:
        """MiB of memory without pages of files."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon:"))

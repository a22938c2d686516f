"""What a command imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_BENCH = (
    "import sys\nfrom pad_rt.cli.main import main\nmain(sys.argv[1:])\n"
    "print(sum(name.startswith('pad_rt.bench') for name in sys.modules))"
)


@pytest.mark.parametrize(("command", "imports"), [("generate", False), ("info", False), ("bench", True)])
def test_the_benchmark_is_imported_for_itself_alone(command: str, imports: bool) -> None:
    arguments = [command, "no-bundle", *(["hi"] if command == "generate" else [])]
    ended = subprocess.run([sys.executable, "-c", COUNT_BENCH, *arguments], capture_output=True, text=True, check=True)
    assert "no bundle at no-bundle" in ended.stderr, "it came to its run"
    assert (int(ended.stdout) > 0) == imports

"""pad-export in a process of its own, and the most memory that it held."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

_CODE = """
import resource, sys
from pad_export.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class Exported:
    """Of a run that ended well: its peak resident set in bytes, and what it said."""

    peak: int
    said: str


def run_export(*arguments: str) -> Exported:
    """Run the command."""
    done = subprocess.run([sys.executable, "-c", _CODE, *arguments], check=True, capture_output=True, text=True)
    return Exported(int(done.stdout.split()[-1]) * 1024, done.stderr)

"""Write tests/golden/greedy.json anew: python -m tests.golden.regenerate

Only after a change that is meant to change tokens; look at the difference before keeping it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.support import golden


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = golden.export(Path(folder))
        golden.write([golden.run(bundle, case) for case in golden.CASES])
    print(f"wrote {golden.FILE}")


if __name__ == "__main__":
    main()

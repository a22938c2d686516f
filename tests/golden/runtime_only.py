"""The golden cases on the installed runtime alone, with no torch in the environment: runtime_only.py BUNDLE"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pad_rt import GenerationConfig, Generator, Preference

FORBIDDEN = ("torch", "transformers", "peft", "onnx")
CASES = json.loads((Path(__file__).parent / "greedy.json").read_text(encoding="utf-8"))


def main() -> int:
    bundle = sys.argv[1]
    present = [name for name in FORBIDDEN if importlib.util.find_spec(name)]
    if present:
        print(f"not a runtime-only environment: it has {', '.join(present)}")
        return 1
    generator = Generator.load(bundle)
    wrong = 0
    for case in CASES:
        preference = Preference(**case["preference"]) if case["preference"] else None
        config = GenerationConfig.from_mapping(case["config"])
        result = generator.generate(case["prompt"], preference=preference, config=config)
        same = list(result.token_ids) == case["token_ids"] and result.text == case["text"]
        wrong += not same
        print(f"{'ok' if same else 'WRONG'}: {case['name']}, {len(result.token_ids)} tokens")
    pad = Path(sys.executable).with_name("pad")
    subprocess.run([pad, "info", bundle, "--check"], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        guided = ("--preference", "short", "--max-new-tokens", "2")
        subprocess.run([pad, "generate", bundle, "hi", *guided, "--explain", page], check=True)
        subprocess.run([pad, "score", bundle, "hi", "egg"], check=True)
        wrong += "</html>" not in page.read_text(encoding="utf-8")  # its template is in the wheel
    exported = subprocess.run([pad.with_name("pad-export"), "--base", ".", "-o", "x"], capture_output=True, check=False)
    if exported.returncode != 2 or b"pad-rt[export]" not in exported.stderr:
        print(f"WRONG: pad-export without torch says {exported.stderr.decode()!r}")
        wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

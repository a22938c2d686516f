"""One question, four replies: the base model, and the same model guided for three people. What `make demo` runs."""

from __future__ import annotations

import itertools
import shutil
import textwrap
import time
from pathlib import Path

from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt import GenerationConfig, GenerationResult, Generator, Preference

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "build" / "demo-bundle"
QUESTION = "Is it a good idea to visit London in winter?"
PEOPLE = {
    "no preference": None,
    "Ada": Preference(weights={"cheerful": 1.0}),
    "Ben": Preference(weights={"cheerful": -1.0}),
    "Cem": Preference(weights={"simple": 0.7, "concise": 0.7}),
}
CONFIG = GenerationConfig(  # the end is offered for the sake of Cem, who wants short replies
    beta=1.15, top_k=10, max_new_tokens=80, offer_end=True, frequency_penalty=0.9
)


def export() -> None:
    """Export base and PersRM into one bundle, with progress and verification."""
    persrm = WEIGHTS_PERSRM.relative_to(ROOT)
    print(f"1. Exporting SmolLM2-135M-Instruct and the PersRM of {persrm} into one step graph, int4 (a minute or two)")
    started = time.perf_counter()
    export_bundle(
        find_smollm2(),
        BUNDLE,
        persrms=[WEIGHTS_PERSRM],
        options=ExportOptions(precision="int4"),
        report=lambda line: print(f"   {line}"),
    )
    print(f"   {BUNDLE.relative_to(ROOT)}: {time.perf_counter() - started:.0f} s\n")


def reply_all() -> dict[str, GenerationResult]:
    """Answer the question for each person with one loaded bundle."""
    with Generator.load(BUNDLE) as generator:
        return {
            name: generator.generate(QUESTION, preference=preference, config=CONFIG)
            for name, preference in PEOPLE.items()
        }


def side_by_side(results: dict[str, GenerationResult]) -> str:
    """Replies in columns as wide as the terminal allows."""
    width = max(24, (shutil.get_terminal_size((108, 24)).columns - 3 * (len(results) - 1)) // len(results))
    columns = []
    for name, result in results.items():
        preference = PEOPLE[name]
        wishes = (
            ", ".join(f"{feature} {weight:+g}" for feature, weight in preference.weights.items()) if preference else ""
        )
        head = [name, wishes or "(the base alone)", "-" * width]
        body = [line for part in result.text.splitlines() for line in textwrap.wrap(part, width) or [""]]
        timing = result.timing
        foot = ["", f"{timing.tokens_per_s:.0f} tokens/s, {timing.step_s * 1e3:.0f} ms each"]
        columns.append(head + body + foot)
    rows = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join(" | ".join(cell.ljust(width) for cell in row).rstrip() for row in rows)


def main() -> None:
    """Export, reply, print."""
    export()
    print(f'2. "{QUESTION}"  (beta {CONFIG.beta:g}, top {CONFIG.top_k} and the end, greedy, int4, on this CPU)\n')
    print(side_by_side(reply_all()))
    bundle = BUNDLE.relative_to(ROOT)
    print("\n3. Your turn:")
    print(f'   .venv/bin/pad generate {bundle} "How was your day?" --weight cheerful=1 --weight simple=0.5')
    print(f"   .venv/bin/pad chat {bundle} --weight simple=1")
    print("\n4. In a browser, with a slider for each feature:")
    print(f"   .venv/bin/pad serve {bundle}")


if __name__ == "__main__":
    main()

"""What the form of a reply, bans and penalties cost a token.

Replies of SmolLM2-135M at int4, plain and guided, with each option and without, taking turns in one process; medians of
the time from a token to the next. Writes benchmarks/results/forms.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, markdown, rounded, versions, write_record
from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt import GenerationConfig, Generator, Preference

PROMPT = "Give me a recipe for a simple vegetable soup."
WORDS = {"type": "string", "maxLength": 120}
RECIPE = {
    "type": "object",
    "properties": {
        "dish": WORDS,
        "minutes": {"type": "integer", "minimum": 1, "maximum": 600},
        "steps": {"type": "array", "items": WORDS, "minItems": 3, "maxItems": 5},
        "vegetarian": {"type": "boolean"},
    },
    "required": ["dish", "minutes", "steps", "vegetarian"],
    "additionalProperties": False,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nothing again": {},
    "json_schema": {"json_schema": RECIPE},
    "regex of any text": {"regex": "(?s:.*)"},
    "banned_token_ids": {"banned_token_ids": [5]},
    "no_repeat_ngram": {"no_repeat_ngram": 4},
    "logit_bias": {"logit_bias": {5: 1.0}},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "logprobs": {"logprobs": 5},
}


def measure(folder: Path, *, new_tokens: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds a token, by guidance and option, and their ratios to those with nothing, round by round."""
    generator = Generator.load(folder, device="cpu", num_threads=1, keep_mib=0)
    feature = generator.manifest.persrms[0].features[0]
    preferences = {"plain": None, "guided": Preference(weights={feature: 1.0})}
    first = _seconds(generator), _seconds(generator)
    found: dict[str, Any] = {"first_form_s": round(first[0] - first[1], 2)}
    times: dict[tuple[str, str], list[float]] = {(who, name): [] for who in preferences for name in OPTIONS}
    for number in range(rounds + 1):
        for (who, name), own in times.items():
            config = GenerationConfig(max_new_tokens=new_tokens, **OPTIONS[name])
            reply = generator.generate(PROMPT, preference=preferences[who], config=config)
            if number:  # the first round warms up
                own.append(1000 * reply.timing.step_s)
    for who in preferences:
        without = times[who, "nothing"]
        ratios = {
            name: statistics.median(own / other for own, other in zip(times[who, name], without, strict=True))
            for name in OPTIONS
        }
        median = {name: statistics.median(times[who, name]) for name in OPTIONS}
        found[who] = {"ms": rounded(median, 2), "ratio_to_nothing": rounded(ratios, 3)}
    return found


def _seconds(generator: Generator) -> float:
    """Of a reply of two characters by a regular expression."""
    start = time.perf_counter()
    generator.generate("hi", config={"regex": "ab"})
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--bundle", type=Path, help="an int4 bundle of SmolLM2 and the shipped PersRM; exported if not given"
    )
    parser.add_argument("--new-tokens", type=int, default=96, help="most tokens of a reply")
    parser.add_argument("--rounds", type=int, default=7, help="replies of each side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = options.bundle or Path(work) / "bundle"
        if not options.bundle:
            export_bundle(
                find_smollm2(), folder, persrms=[WEIGHTS_PERSRM], options=ExportOptions(precision="int4", verify=False)
            )
        figures = measure(folder, new_tokens=options.new_tokens, rounds=options.rounds)
    record = {
        "what": "SmolLM2-135M-Instruct, int4, one reply at a time, one thread",
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "numpy", "llguidance"),
        **figures,
    }
    write_record(RESULTS / "forms.json", record)
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    sides = [record[who] for who in ("plain", "guided")]
    lines = [
        [
            name,
            *(cell for side in sides for cell in (f"{side['ms'][name]:.1f}", f"{side['ratio_to_nothing'][name]:.2f}")),
        ]
        for name in OPTIONS
    ]
    return markdown(("option", "plain, ms a token", "ratio", "guided, ms a token", "ratio"), lines)


if __name__ == "__main__":
    main()

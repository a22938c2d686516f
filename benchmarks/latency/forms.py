"""What the form of a reply, bans, penalties and log-probabilities cost a token.

Steps of SmolLM2-135M at int4, plain and guided, with each option and without, taking turns in one process: what the
engine does for a token of a request, from the token before. Writes benchmarks/results/forms.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, markdown, rounded, versions, write_record
from benchmarks.latency.bundles import read_demo_workload
from pad_rt.allowed.allowed_tokens import AllowedTokens
from pad_rt.allowed.banned import BannedTokens
from pad_rt.allowed.grammar import GrammarMaker
from pad_rt.allowed.joined import JoinedTokens
from pad_rt.allowed.no_repeat import NoRepeatNgram
from pad_rt.bench.rounds import Spread, compare
from pad_rt.bench.steps import Workload, measure_steps, open_bundle
from pad_rt.logprobs import token_logprobs
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.decode.slot import Slot
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import RowPlan
from pad_runtime.rows.sequence import Controls, Sampling

NOTHING = "nothing"
RECIPES = {
    "type": "array",
    "minItems": 20,
    "items": {
        "type": "object",
        "properties": {
            "dish": {"type": "string", "maxLength": 60},
            "minutes": {"type": "integer", "minimum": 1, "maximum": 600},
            "vegetarian": {"type": "boolean"},
        },
        "required": ["dish", "minutes", "vegetarian"],
        "additionalProperties": False,
    },
}


@dataclass(frozen=True)
class Option:
    """What is asked of a request."""

    controls: Controls = field(default_factory=Controls)
    allowed: Callable[[], AllowedTokens | None] = lambda: None
    logprobs: int | None = None


class Side:
    """One request, as the engine decodes it."""

    def __init__(self, bundle: Bundle, plan: RowPlan, option: Option, workload: Workload) -> None:
        self._decoder, self._plan, self._option = bundle.decoder(), plan, option
        self._sequence = plan.sequence(Sampling(top_k=workload.top_k), option.controls)
        self._room = plan.longest + workload.new_tokens + 1
        self._slot: Slot | None = None
        self._allowed: AllowedTokens | None = None
        self._chosen = -1

    def prefill(self) -> None:
        """Read the prompts into a new slot, and choose the first token."""
        if self._slot is not None:
            self._decoder.close(self._slot)
        self._slot = self._decoder.open(self._sequence, self._room)
        self._allowed = self._option.allowed()
        if self._allowed is not None:
            self._decoder.allow(self._slot, self._allowed.packed())
        self._decoder.read(self._slot, dict(enumerate(self._plan.prompts)))
        self._choose()

    def step(self) -> None:
        """Choose the next token."""
        if self._allowed is not None and self._slot is not None:
            self._allowed.push(self._chosen)
            self._decoder.allow(self._slot, self._allowed.packed())
        self._choose()

    def _choose(self) -> None:
        assert self._slot is not None
        step = self._decoder.step([self._slot], trace=self._option.logprobs is not None)
        (self._chosen,) = step.ids
        if self._option.logprobs is not None:
            (trace,) = step.trace()
            token_logprobs(trace, self._chosen, self._sequence.sampling, self._option.logprobs)


def make_options(bundle: Bundle, prompt: tuple[int, ...], workload: Workload) -> tuple[dict[str, Option], float]:
    """Options by name, and the seconds that reading the vocabulary for the first grammar took."""
    manifest = bundle.manifest
    size, ends = manifest.vocab_size, (0, 2)
    tokenizer = Tokenizer(bundle.files[manifest.tokenizer.file].path, bos_token=None, eos_token=None)
    maker = GrammarMaker(tokenizer, size)
    start = time.perf_counter()
    maker.make("regex", "a", ends)
    first = time.perf_counter() - start
    room = len(prompt) + workload.new_tokens + 1
    options = {
        NOTHING: Option(),
        "nothing again": Option(),
        "json_schema": Option(allowed=lambda: JoinedTokens([maker.make("json_schema", RECIPES, ends)])),
        "regex of any text": Option(allowed=lambda: JoinedTokens([maker.make("regex", "(?s:.*)", ends)])),
        "banned_token_ids": Option(allowed=lambda: JoinedTokens([BannedTokens([5], size)])),
        "no_repeat_ngram": Option(allowed=lambda: JoinedTokens([NoRepeatNgram(4, prompt, room, size)])),
        "logit_bias": Option(Controls(bias={5: 1.0})),
        "penalties": Option(Controls(repetition_penalty=1.1, frequency_penalty=0.1)),
        "logprobs": Option(logprobs=5),
    }
    return options, first


def measure(folder: Path, workload: Workload) -> dict[str, Any]:
    """Milliseconds a token by guidance and option, and their ratios to those with nothing, step by step."""
    bundle = open_bundle(folder, device="cpu", num_threads=1)
    plans = {name: workload.plan(bundle.manifest, guided=name == "guided") for name in ("plain", "guided")}
    options, first = make_options(bundle, plans["plain"].prompts[0], workload)
    found: dict[str, Any] = {"first_form_s": round(first, 2)}
    for who, plan in plans.items():
        sides = {name: Side(bundle, plan, option, workload) for name, option in options.items()}
        times: Mapping[str, list[float]] = measure_steps(sides, workload).step
        found[who] = {
            "ms": {name: rounded(asdict(Spread.of(values)), 3) for name, values in times.items()},
            "ratio": {name: rounded(asdict(compare(values, times[NOTHING])), 3) for name, values in times.items()},
        }
    return found


def main() -> None:
    folder, workload = read_demo_workload(__doc__)
    figures = measure(folder, workload)
    record = {
        "what": "SmolLM2-135M-Instruct, int4, batch 1, one thread, random token ids as the prompt",
        "workload": asdict(workload),
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
        [name, *(f"{side[what][name]['p50']:.2f}" for side in sides for what in ("ms", "ratio"))]
        for name in sides[0]["ms"]
    ]
    return markdown(("option", "plain, ms a token", "ratio", "guided, ms a token", "ratio"), lines)


if __name__ == "__main__":
    main()

"""Does guidance give users what they ask for, and at what price? Prompts x preferences x methods, judged.

Replies come from the bundle that pad-export makes of the PersRM, greedy, int4 unless told otherwise. Each cell (a
method, a user, a setting) is kept as a file under --work, so an interrupted run goes on where it stopped. Then judges
that never saw the training text score them. Writes benchmarks/results/quality.json (figures with 95 % intervals),
quality_replies.json (replies to read) and docs/plots/quality-*.png, and prints tables.

A win rate is wins plus half of the ties. Where a judge's score may depend on length (all but those of "concise"),
"equal words" first cuts both replies to a prompt to the shorter one's number of words: with nearly all of the base's
replies at the cap, a regression on length would have hardly any spread of lengths to be fitted to.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import PLOTS, RESULTS, ROOT, rounded, versions, write_dense
from benchmarks.quality.bundles import (
    MAX_BATCH,
    RANDOM_SEED,
    ensure_bundle,
    ensure_scales,
    fingerprint,
    prompt_template,
)
from benchmarks.quality.evaluation import Evaluation
from benchmarks.quality.generation import Job, fill
from benchmarks.quality.judges import load_judges
from benchmarks.quality.methods import ABOUT_ENDING, BETA, PARTS, TOP_K, WIDE_TOP_K, Cell, part_cells
from benchmarks.quality.prompts import read_prompts
from benchmarks.quality.random_reward import factors, write_random_persrm
from benchmarks.quality.replies import ReplyStore, is_complete
from benchmarks.quality.table import tables
from benchmarks.quality.timings import ensure_timings
from benchmarks.quality.traits import WORDINGS, load_traits
from demo.smollm2 import WEIGHTS_PERSRM, WORDS_PERSRM
from pad_runtime.bundle.manifest import Precision

NUM_CALIBRATION = 24  # prompts, each with a random direction of its own
NUM_EXAMPLES = 20
_PACKAGES = ("pad-rt", "onnxruntime", "numpy", "torch", "transformers")
_JUDGES = ("scikit-learn", "textstat", "vaderSentiment", "matplotlib")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=120, help="prompts of the main part")
    parser.add_argument("--sweep-prompts", type=int, default=40, help="prompts of all other parts: the first of them")
    parser.add_argument("--perplexities", type=int, default=24, help="replies of a cell whose perplexity is measured")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to generate")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes, a thread each")
    parser.add_argument("--persrm", type=Path, default=WEIGHTS_PERSRM, help="asked by weights")
    parser.add_argument("--words-persrm", type=Path, default=WORDS_PERSRM, help="asked in words")
    parser.add_argument("--precision", choices=get_args(Precision), default="int4", help="of the bundle (default int4)")
    parser.add_argument("--wordings", type=Path, default=WORDINGS, help="features.json of the PersRM's training")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quality", help="bundle and replies")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    arguments = parser.parse_args()
    if not 1 <= arguments.sweep_prompts <= arguments.prompts:
        parser.error("--sweep-prompts must lie between 1 and --prompts")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    traits = load_traits(arguments.wordings)
    prompts = read_prompts(arguments.prompts)
    judges = load_judges()
    for judge in judges:
        print(f"judge of {judge.feature}: {judge.name} ({judge.check})")
    mark, words_mark = (
        fingerprint(persrm, arguments.precision) for persrm in (arguments.persrm, arguments.words_persrm)
    )
    random_persrm = write_random_persrm(arguments.persrm, arguments.work / "random", seed=RANDOM_SEED)
    bundle = ensure_bundle([arguments.persrm, random_persrm], arguments.precision, arguments.work / "bundle", mark)
    words = ensure_bundle([arguments.words_persrm], arguments.precision, arguments.work / "bundle-words", words_mark)
    scales = ensure_scales(bundle, read_prompts(NUM_CALIBRATION), list(traits), arguments.work, mark)
    for feature, scale in scales.items():
        print(f"random reward for {feature}: {asdict(scale)}")
    weights = factors(scales)
    store = ReplyStore(arguments.work / "replies", f"{mark} {words_mark} {json.dumps(weights)}")

    def number(part: str) -> int:
        return int(arguments.prompts if part == "main" else arguments.sweep_prompts)

    def missing(parts: list[str]) -> list[tuple[Cell, list[str]]]:
        asked: dict[Cell, int] = {}
        for part in parts:
            for cell in part_cells(part, traits):
                asked[cell] = max(number(part), asked.get(cell, 0))
        return [
            (cell, prompts[:count])
            for cell, count in asked.items()
            if not is_complete(store, cell, prompts[:count], num_perplexities=arguments.perplexities)
        ]

    template = prompt_template(arguments.words_persrm)
    job = Job(bundle, words, tuple(weights.items()), template, store.folder, store.fingerprint, arguments.perplexities)
    todo = missing(arguments.only)
    if todo:
        fill(job, todo, workers=arguments.workers)

    started = time.perf_counter()
    sizes = {"num_prompts": arguments.prompts, "num_sweep": arguments.sweep_prompts}
    evaluation = Evaluation(store, prompts, traits, judges, num_perplexities=arguments.perplexities, **sizes)
    ready = [part for part in PARTS if not missing([part])]
    parts: dict[str, Any] = {part: evaluation.figures(part) for part in ready}
    if {"main", "words", "mixtures"} <= set(ready):
        parts["frontier"] = evaluation.frontier()
    print(f"judged in {time.perf_counter() - started:.0f} s: {', '.join(ready)}", flush=True)
    parts["timings"] = ensure_timings(arguments.work / "timings.json", mark, (bundle, words), weights, prompts, traits)
    record = {
        "what": f"SmolLM2-135M-Instruct and its PersRM, {arguments.precision}, greedy, by the exported bundle",
        "settings": {
            "prompts": arguments.prompts,
            "sweep_prompts": arguments.sweep_prompts,
            "perplexities": arguments.perplexities,
            "beta": BETA,
            "top_k": TOP_K,
            "persrm_alone_top_k": WIDE_TOP_K,
            "offer_end": list(ABOUT_ENDING),
            "max_batch": MAX_BATCH,
            "fingerprint": [mark, words_mark],
            "interval": "95 %, percentile bootstrap over prompts, 4000 resamples",
            "win_rate": "wins + ties / 2; an empty reply loses",
        },
        "traits": {name: asdict(trait) for name, trait in traits.items()},
        "judges": {judge.name: {"feature": judge.feature, "check": judge.check} for judge in judges},
        "random_reward": {
            "seed": RANDOM_SEED,
            "scales": {name: rounded(asdict(scale), 4) for name, scale in scales.items()},
        },
        "machine": describe_machine(),
        "python": platform.python_version(),
        "versions": versions(*_PACKAGES, *_JUDGES),
        "parts": parts,
    }
    write_dense(arguments.results / "quality.json", record)
    if "main" in ready:
        write_dense(arguments.results / "quality_replies.json", evaluation.examples(min(NUM_EXAMPLES, len(prompts))))
    from benchmarks.quality.plots import draw

    made = draw(record, arguments.plots)
    print(tables(record))
    print("\nplots: " + ", ".join(path.name for path in made))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run the same command again to go on") from None

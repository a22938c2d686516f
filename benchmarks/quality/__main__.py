"""Does guidance give users what they ask for, and at what price? Questions x preferences x methods, judged.

Replies come from the bundles that pad-export makes of the PersRMs, int4 unless told otherwise. Each cell (a method, a
user, a setting) is kept as a file under --work, so an interrupted run goes on where it stopped, and a new PersRM leaves
the base's replies as they are. Two judges a feature, that saw no training text, score them, and a reply is sound if it
keeps to the question, does not repeat itself and is no less grammatical than the base's. Writes
benchmarks/results/quality.json (figures with 95 % intervals), quality_replies.json (replies to read) and
docs/plots/quality-*.png, and prints tables; for another base its file's name is part of theirs.

With "--questions training" the questions are those of the training list that no pair was made of, and everything is
written under --work: what is chosen, is chosen there.

A win rate is wins plus half of the ties. Where a judge's score may depend on length, "equal words" first cuts both
replies to a question to the shorter one's number of words.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from benchmarks.common.kept import kept
from benchmarks.common.machine import describe_machine
from benchmarks.common.records import PLOTS, RESULTS, ROOT, rounded, versions, write_dense
from benchmarks.quality.bundles import MAX_BATCH, RANDOM_SEED
from benchmarks.quality.design import PARTS
from benchmarks.quality.examples import examples
from benchmarks.quality.generation import CellGenerator
from benchmarks.quality.judging import Judging, design_judges
from benchmarks.quality.methods import ABOUT_ENDING, BASE, BETA, PENALTIES, RANDOM, TEMPERATURE, TOP_K, WIDE_TOP_K
from benchmarks.quality.prompts import read_prompts, read_unpaired
from benchmarks.quality.run import Run
from benchmarks.quality.scores import Scores
from benchmarks.quality.table import tables
from benchmarks.quality.timings import ROUNDS, TOKENS, measure_timings
from benchmarks.quality.traits import WORDINGS
from demo.smollm2 import WEIGHTS_PERSRM
from pad_runtime.bundle.manifest import Precision

DEFAULT_PARTS = ("main", "sampled", "others", "mixtures", "slider", "front")
NUM_EXAMPLES = 20
_PACKAGES = ("pad-rt", "onnxruntime", "numpy", "torch", "transformers")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", choices=("unseen", "training"), default="unseen")
    parser.add_argument("--prompts", type=int, default=100, help="questions of main, sampled and mixtures")
    parser.add_argument("--other-prompts", type=int, default=40, help="questions of others: the first of them")
    parser.add_argument("--sweep-prompts", type=int, default=24, help="questions of all other parts")
    parser.add_argument("--perplexities", type=int, default=24, help="replies of a cell whose perplexity is measured")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=DEFAULT_PARTS, help="parts to generate")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes, a thread each")
    parser.add_argument("--base", type=Path, help="GGUF file or checkpoint (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--ask", default="{x}", help="text to put a question {x} in, for a base without chat template")
    parser.add_argument(
        "--persrm", type=Path, nargs="+", default=[WEIGHTS_PERSRM], help="one, and its like of other seeds"
    )
    parser.add_argument("--beta", type=float, default=BETA, help=f"strength of the reward (default {BETA})")
    parser.add_argument("--precision", choices=get_args(Precision), default="int4", help="of the bundle (default int4)")
    parser.add_argument("--wordings", type=Path, default=WORDINGS, help="features.json of the PersRM's pairs")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quality", help="bundles and replies")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    arguments = parser.parse_args()
    if not 1 <= arguments.sweep_prompts <= arguments.other_prompts <= arguments.prompts:
        parser.error("expected 1 <= --sweep-prompts <= --other-prompts <= --prompts")
    names = [persrm.resolve().name for persrm in arguments.persrm]
    if len(set(names) | {RANDOM}) <= len(names):
        parser.error(f"--persrm: folders of different names, and none named {RANDOM!r}")
    arguments.name = "quality"
    if arguments.base is not None:
        arguments.name += f"_{arguments.base.stem}"
        arguments.work = arguments.work / arguments.base.stem
    if arguments.questions == "training":
        arguments.results = arguments.plots = arguments.work / "training-results"
    return arguments


def main() -> None:
    arguments = parse_arguments()
    questions, number = arguments.questions, arguments.prompts
    prompts = read_prompts(number) if questions == "unseen" else read_unpaired(number)
    run = Run(arguments)
    design = run.design
    for feature, scale in run.scales.items():
        print(f"random reward for {feature}: {asdict(scale)}")
    judges = design_judges(design)
    for judge in judges:
        print(f"judge of {judge.feature}: {judge.name} ({judge.check})")
    run.fill(questions, run.missing(questions, prompts, arguments.only))
    kin: dict[str, list[float]] = kept(
        arguments.work / "kinship.json",
        [run.marks[BASE], arguments.wordings.read_text(encoding="utf-8")],
        lambda: {name: estimate.rounded() for name, estimate in run.kinship(judges).items()},
    )
    print("kinship: " + ", ".join(f"{name} {value:.2f}" for name, (value, *_) in kin.items()), flush=True)
    started = time.perf_counter()
    soundness = run.soundness()
    ready = [part for part in PARTS if not run.missing(questions, prompts, [part])]
    numbers = tuple((part, run.number(part)) for part in ready)
    store, sampled = run.store(questions), "sampled" in ready
    judging = Judging(store, tuple(prompts), soundness.margins, design, numbers, sampled)
    parts: dict[str, Any] = {**judging.parts(ready, workers=arguments.workers)}
    print(f"judged in {time.perf_counter() - started:.0f} s: {', '.join(ready)}", flush=True)
    generator = CellGenerator(run.bundles, run.factors, arguments.ask)
    parts["timings"] = kept(
        arguments.work / "timings.json",
        [run.marks, TOKENS, ROUNDS],
        lambda: measure_timings(generator, prompts, design),
    )
    record = {
        "what": f"{run.base.stem} and its PersRM, {arguments.precision}, by the exported bundle",
        "settings": {
            "questions": questions,
            "prompts": number,
            "other_prompts": arguments.other_prompts,
            "sweep_prompts": arguments.sweep_prompts,
            "perplexities": arguments.perplexities,
            "ask": arguments.ask,
            "beta": arguments.beta,
            "top_k": TOP_K,
            "temperature_of_samples": TEMPERATURE,
            "persrm_alone_top_k": WIDE_TOP_K,
            "offer_end": list(ABOUT_ENDING),
            "penalties": dict(PENALTIES),
            "max_batch": MAX_BATCH,
            "marks": run.marks,
            "interval": "95 %, percentile bootstrap over questions, seeds averaged within a question, 4000 resamples",
            "win_rate": "wins + ties / 2; an empty reply loses",
            "kinship": "Spearman with the scorer of the feature's pairs, over samples of the base",
        },
        "traits": {name: asdict(trait) for name, trait in design.traits.items()},
        "judges": {judge.name: {"feature": judge.feature, "check": judge.check} for judge in judges},
        "kinship": kin,
        "soundness": asdict(soundness.margins),
        "random_reward": {
            "seed": RANDOM_SEED,
            "scales": {name: rounded(asdict(scale), 4) for name, scale in run.scales.items()},
        },
        "machine": describe_machine(),
        "python": platform.python_version(),
        "versions": versions(*_PACKAGES),
        "parts": parts,
    }
    write_dense(arguments.results / f"{arguments.name}.json", record)
    if "main" in ready:
        replies = arguments.results / f"{arguments.name}_replies.json"
        scores = Scores(store, prompts, judges, soundness)
        write_dense(replies, examples(scores, design, prompts[:NUM_EXAMPLES]))
    from benchmarks.quality.plots import draw

    made = draw(record, arguments.plots, arguments.name.replace("_", "-"))
    print(tables(record))
    print("\nplots: " + ", ".join(path.name for path in made))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run the same command again to go on") from None

"""Do penalties keep greedy replies from repeating themselves, and what do they cost in win rates?

The setting is chosen on questions of the training list that no pair was made of ("choice"), and measured once on those
that no training saw ("measured"), by the judges of `benchmarks.quality`. Replies are kept under --work, so that an
interrupted run goes on where it stopped. Writes benchmarks/results/repetition.json, with replies to read, and prints
tables.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, ROOT, versions, write_dense
from benchmarks.quality.bundles import MAX_BATCH, ensure_bundle, fingerprint, prompt_template
from benchmarks.quality.evaluation import Evaluation
from benchmarks.quality.generation import Job, fill
from benchmarks.quality.judges import load_judges
from benchmarks.quality.methods import BETA, TOP_K, Asked, Cell, Penalties, base_cell, trait_cell
from benchmarks.quality.prompts import read_prompts, read_unpaired
from benchmarks.quality.replies import ReplyStore, is_complete
from benchmarks.quality.table import choice_table, repetition_table, wanted
from benchmarks.quality.traits import WORDINGS, Trait, load_traits
from demo.smollm2 import WEIGHTS_PERSRM, WORDS_PERSRM

TRIED: tuple[Penalties, ...] = (
    (("repetition_penalty", 1.05),),
    (("repetition_penalty", 1.1),),
    (("repetition_penalty", 1.2),),
    (("frequency_penalty", 0.3),),
    (("frequency_penalty", 0.6),),
    (("presence_penalty", 0.5),),
    (("no_repeat_ngram", 4),),
)
CHOSEN: Penalties = (("repetition_penalty", 1.1),)  # the least of which no guided reply repeated itself
USERS = (("cheerful", 1.0), ("simple", 1.0), ("concise", 1.0), ("cheerful", -1.0), ("simple", -1.0))
NUM_EXAMPLES = 10  # questions whose replies are in the record
_PACKAGES = ("pad-rt", "onnxruntime", "numpy", "torch", "transformers", "scikit-learn", "textstat", "vaderSentiment")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100, help="questions that are measured")
    parser.add_argument("--choice-prompts", type=int, default=16, help="questions that the choice is made on")
    parser.add_argument("--perplexities", type=int, default=24, help="replies of a cell whose perplexity is measured")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes, a thread each")
    parser.add_argument("--as-is", action="store_true", help="generate nothing: judge the replies that are there")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "repetition", help="bundle and replies")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def guided(trait: Trait, weight: float, penalties: Penalties) -> Cell:
    return replace(trait_cell("pad", trait, weight), penalties=penalties)


def choice(users: Sequence[tuple[Trait, float]]) -> list[Asked]:
    """Guided replies without a penalty and with each that was tried."""
    return [
        Asked(guided(trait, weight, penalties), trait, weight, {"penalties": dict(penalties)})
        for penalties in ((), *TRIED)
        for trait, weight in users
        if trait.name != "concise"  # these replies end before they repeat themselves
    ]


def measured(users: Sequence[tuple[Trait, float]]) -> list[Asked]:
    """Guided without the penalties and with them, the base that is told in its prompt, and the base with them: what
    they alone do to the judges' scores.
    """
    rows = []
    for trait, weight in users:
        alone = replace(base_cell(trait.max_new_tokens), penalties=CHOSEN)
        told = trait_cell("prompted", trait, weight)
        cells = [guided(trait, weight, ()), guided(trait, weight, CHOSEN), told, alone]
        rows += [Asked(cell, trait, weight, {"penalties": dict(cell.penalties)}) for cell in cells]
    return rows


def main() -> None:
    arguments = parse_arguments()
    traits, judges = load_traits(WORDINGS), load_judges()
    users = [(traits[name], weight) for name, weight in USERS]
    mark = fingerprint(WEIGHTS_PERSRM, "int4")
    bundle = ensure_bundle([WEIGHTS_PERSRM], "int4", arguments.work / "bundle", mark)
    template = prompt_template(WORDS_PERSRM)
    parts: dict[str, list[dict[str, Any]]] = {}
    for part, rows, prompts in (
        ("choice", choice(users), read_unpaired(arguments.choice_prompts)),
        ("measured", measured(users), read_prompts(arguments.prompts)),
    ):
        number = arguments.perplexities if part == "measured" else 0
        store = ReplyStore(arguments.work / part, f"{mark} {template}")
        job = Job(bundle, bundle, (), template, store.folder, store.fingerprint, number)  # no cell asks in words
        if not arguments.as_is:
            _generate(job, store, rows, prompts, workers=arguments.workers)
        there = [row for row in rows if _are_complete(store, [row.cell, row.base], prompts)]
        evaluation = Evaluation(
            store,
            prompts,
            traits,
            judges,
            num_prompts=len(prompts),
            num_sweep=len(prompts),
            num_perplexities=number,
        )
        parts[part] = evaluation.rows(there, len(prompts))
        if part == "measured":
            replies = examples(store, there, prompts[:NUM_EXAMPLES])
    record = {
        "what": "SmolLM2-135M-Instruct and its PersRM, int4, greedy, by the exported bundle: penalties on repetition",
        "settings": {
            "chosen": dict(CHOSEN),
            "choice_prompts": arguments.choice_prompts,
            "prompts": arguments.prompts,
            "perplexities": arguments.perplexities,
            "beta": BETA,
            "top_k": TOP_K,
            "max_batch": MAX_BATCH,
            "fingerprint": mark,
            "interval": "95 %, percentile bootstrap over prompts, 4000 resamples",
            "win_rate": "wins + ties / 2; an empty reply loses",
            "repeats": "share of replies for which pad_train.pairs.pair_choice.repeats_itself",
        },
        "judges": {judge.name: {"feature": judge.feature, "check": judge.check} for judge in judges},
        "machine": describe_machine(),
        "python": platform.python_version(),
        "versions": versions(*_PACKAGES),
        "parts": parts,
        "replies": replies,
    }
    write_dense(arguments.results / "repetition.json", record)
    print(f"## Choice\n\n{choice_table(parts['choice'])}\n\n## Measured\n\n{repetition_table(parts['measured'])}")


def _generate(job: Job, store: ReplyStore, rows: Sequence[Asked], prompts: list[str], *, workers: int) -> None:
    cells = dict.fromkeys(cell for row in rows for cell in (row.cell, row.base, row.prompted))
    number = job.num_perplexities
    todo = [cell for cell in cells if not is_complete(store, cell, prompts, num_perplexities=number)]
    if todo:
        fill(job, [(cell, prompts) for cell in todo], workers=workers)


def _are_complete(store: ReplyStore, cells: Sequence[Cell], prompts: Sequence[str]) -> bool:
    return all(is_complete(store, cell, prompts, num_perplexities=0) for cell in cells)


def examples(store: ReplyStore, rows: Sequence[Asked], prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Guided replies without the penalties and with them, to be read."""
    replies = {}
    for row in rows:
        if row.cell.method == "pad":
            name = wanted(row.trait.name, row.weight) + ", penalized" * bool(row.cell.penalties)
            replies[name] = [reply.text for reply in store.load(row.cell, prompts).replies[: len(prompts)]]
    return [
        {"prompt": prompt, "replies": {name: texts[index] for name, texts in replies.items()}}
        for index, prompt in enumerate(prompts)
    ]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run the same command again to go on") from None

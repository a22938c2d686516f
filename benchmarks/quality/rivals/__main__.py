"""Rivals of PAD at about its cost: what do they give for what they take?

Beside the base that is told in its prompt, PAD and the PersRM alone stand a soup of LoRAs of one feature each, an
activation vector from the same pairs, and the best of 4 and of 8 samples by the PersRM's phi. The soup and the vector
run in torch; "base" in torch is a row of its own, held against the bundle's base: what is not 50 % there is the int4
weights' doing. Options, questions and replies are those of `python -m benchmarks.quality`, whose cells are used where
they are there. Writes benchmarks/results/rivals.json and docs/plots/rivals-front.png, and prints a table.

With "--questions training" the strengths of the soup and of the vector are tried on questions of the training list that
no pair was made of.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.common.kept import kept
from benchmarks.common.machine import describe_machine
from benchmarks.common.records import versions, write_dense
from benchmarks.quality.__main__ import parse_arguments
from benchmarks.quality.design import Asked
from benchmarks.quality.judging import design_judges
from benchmarks.quality.methods import Method
from benchmarks.quality.prompts import read_prompts, read_unpaired
from benchmarks.quality.rivals.contest import BEST_OF, OF_BUNDLE, SOUP_BETA, VECTOR_BETA, Contest
from benchmarks.quality.rivals.costs import ROUNDS, TOKENS
from benchmarks.quality.rivals.summary import summary, table
from benchmarks.quality.rivals.vector import middle_layer
from benchmarks.quality.rows import trait_row
from benchmarks.quality.run import Run
from benchmarks.quality.scores import Scores

TRIED: Mapping[Method, tuple[float, ...]] = {"soup": (1.0, 1.5, 2.0), "vector": (2.0, 4.0, 8.0)}
ASKED: tuple[Method, ...] = (*OF_BUNDLE, "base", "soup", "vector", *BEST_OF)
_PACKAGES = ("pad-rt", "onnxruntime", "numpy", "torch", "transformers", "peft")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    number, questions = arguments.other_prompts, arguments.questions
    prompts = read_prompts(number) if questions == "unseen" else read_unpaired(number)
    run = Run(arguments)
    contest = Contest(run, arguments, prompts)
    asked = []
    for trait, weight in run.design.users:
        weights = {trait.name: weight}
        base, prompted = run.design.cell("base", weights), run.design.cell("prompted", weights)
        if questions == "training":
            tried = [(method, beta) for method, some in TRIED.items() for beta in some]
            cells = [(contest.cell(method, weights, beta=beta), {"beta": beta}) for method, beta in tried]
        else:
            cells = [(contest.cell(method, weights), {}) for method in ASKED]
        asked += [Asked((cell,), trait, weight, base, prompted, setting) for cell, setting in cells]
    needed = dict.fromkeys(cell for one in asked for cell in (*one.cells, one.base, one.prompted))
    store = contest.fill(list(needed))
    judges = design_judges(run.design)
    scores = Scores(store, prompts, judges, run.soundness())
    rows = [trait_row(scores, one, number) for one in asked]
    costs = kept(arguments.work / "rival-costs.json", [run.marks, ROUNDS, TOKENS], contest.costs)
    lines = summary(rows, costs)
    record = {
        "what": f"{run.base.stem}: PAD's rivals; soup and vector in torch, the others {arguments.precision}",
        "settings": {
            "questions": questions,
            "number": number,
            "soup_beta": SOUP_BETA,
            "vector_beta": VECTOR_BETA,
            "torch_dtype": str(contest.torch.backbone.model.dtype),
            "vector_layer": middle_layer(contest.torch.backbone),
            "vector_norms": {name: round(float(one.norm()), 3) for name, one in contest.torch.vectors.items()},
            "marks": run.marks,
        },
        "judges": {judge.name: {"feature": judge.feature, "check": judge.check} for judge in judges},
        "summary": lines,
        "costs": costs,
        "rows": rows,
        "machine": describe_machine(),
        "python": platform.python_version(),
        "versions": versions(*_PACKAGES),
    }
    results: Path = arguments.results
    name = arguments.name.replace("quality", "rivals")
    write_dense(results / f"{name}.json", record)
    if questions == "unseen":
        from benchmarks.common.plots import save
        from benchmarks.quality.rivals.plot import front

        save({f"{name}-front".replace("_", "-"): lambda: front(lines)}, arguments.plots)
    print(table(lines))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run the same command again to go on") from None

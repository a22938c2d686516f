"""A bundle's replies to questions, for `pad-train pairs --replies` to rank: a further round of pairs for its PersRM.

Each question is answered greedily for no one in particular, and for people drawn for it: some who want one feature,
some who want two by weights of their own, and the opposite of each. Each person has a greedy reply, two sampled ones,
and one sampled with a reward that is too strong.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pad_rt import GenerationConfig, Generator, Preference

TEMPERATURE = 0.7
TOO_STRONG = 5 / 3  # times beta: such replies show what goes wrong first


def main(argv: Sequence[str] | None = None) -> None:
    """Answer the questions and write the replies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="text, one question a line")
    parser.add_argument("--skip", type=int, default=0, help="without the first N questions")
    parser.add_argument("--limit", type=int, help="only so many questions")
    parser.add_argument("--wishes", type=int, default=2, help="of each question, for one and two features in turn")
    parser.add_argument("--beta", type=float, default=1.15)
    parser.add_argument("--tokens", type=int, default=56, help="most tokens of a reply")
    parser.add_argument("--threads", type=int, help="default: one a core; several processes are faster with one each")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSONL to write")
    options = parser.parse_args(argv)
    lines = [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = lines[options.skip :][: options.limit]
    generator = Generator.load(options.bundle, num_threads=options.threads)
    with options.output.open("w", encoding="utf-8") as file:
        for prompt in tqdm(prompts, desc="answering", unit="question"):
            for row in guided_replies(generator, prompt, options.wishes, options.beta, options.tokens):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def guided_replies(
    generator: Generator, prompt: str, num_wishes: int, beta: float, max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    """Rows as `pad-train pairs --replies` reads them."""
    requests: list[tuple[dict[str, float], GenerationConfig]] = []
    for wish in draw_wishes(prompt, generator.manifest.persrms[0].features, num_wishes):
        for sign in (1.0, -1.0):
            person = {name: sign * weight for name, weight in wish.items()}
            for seed, strength in ((0, 1.0), (1, 1.0), (2, 1.0), (3, TOO_STRONG)):
                temperature = TEMPERATURE if seed else 0.0
                how = GenerationConfig(
                    beta=strength * beta, temperature=temperature, seed=seed, max_new_tokens=max_new_tokens
                )
                requests.append((person, how))
    requests.append(({}, GenerationConfig(max_new_tokens=max_new_tokens)))
    results = generator.generate_batch(
        [prompt] * len(requests),
        preferences=[Preference(weights=person) if person else None for person, _ in requests],
        configs=[how for _, how in requests],
    )
    for (person, _), result in zip(requests, results, strict=True):
        row: dict[str, Any] = {"prompt": prompt, "reply": result.text}
        if result.finish_reason == "length":
            row["finished"] = False
        yield row | ({"weights": person} if person else {})


def draw_wishes(prompt: str, features: Sequence[str], number: int) -> list[dict[str, float]]:
    """Feature weights of so many people, of length 1: one feature, then a mixture of two, in turn.

    They depend on the prompt, and not on the other prompts.
    """
    rng = random.Random(prompt)
    wishes = []
    for index in range(number):
        names = rng.sample(list(features), 1 + index % 2)
        angle = rng.uniform(math.pi / 8, 3 * math.pi / 8)  # neither of the two is as good as absent
        weights = (1.0,) if len(names) == 1 else (math.cos(angle), rng.choice((1, -1)) * math.sin(angle))
        wishes.append({name: round(weight, 3) for name, weight in zip(names, weights, strict=True)})
    return wishes


if __name__ == "__main__":
    main()

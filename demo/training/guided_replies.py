"""A bundle's replies to questions, for `pad-train pairs --replies` to rank: a second round of pairs for its PersRM.

Each question is answered greedily without a preference. For each feature it is answered for a person who wants more of
it and for one who wants less: greedily, twice sampled, and once sampled with a reward that is too strong.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--limit", type=int, help="only the first N questions")
    parser.add_argument("--feature", nargs="+", required=True, help="features of the bundle's PersRM")
    parser.add_argument("--beta", type=float, default=1.5)
    parser.add_argument("--tokens", type=int, default=56, help="most tokens of a reply")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSONL to write")
    options = parser.parse_args(argv)
    prompts = [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = prompts[: options.limit]
    generator = Generator.load(options.bundle)
    with options.output.open("w", encoding="utf-8") as file:
        for row in guided_replies(generator, prompts, options.feature, options.beta, options.tokens):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def guided_replies(
    generator: Generator, prompts: Sequence[str], features: Sequence[str], beta: float, max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    """Rows as `pad-train pairs --replies` reads them."""
    size = generator.manifest.max_batch

    def config(strength: float = 1.0, seed: int = 0) -> GenerationConfig:
        temperature = TEMPERATURE if seed else 0.0
        return GenerationConfig(beta=strength * beta, temperature=temperature, seed=seed, max_new_tokens=max_new_tokens)

    for_person = (config(), config(seed=1), config(seed=2), config(TOO_STRONG, seed=3))
    requests: list[tuple[dict[str, float], GenerationConfig]] = [({}, config())]
    requests += [({feature: sign}, how) for feature in features for sign in (1.0, -1.0) for how in for_person]
    for start in tqdm(range(0, len(prompts), size), desc="answering", unit="batch"):
        batch = list(prompts[start : start + size])
        for weights, how in requests:
            preference = Preference(weights=weights) if weights else None
            results = generator.generate_batch(batch, preferences=[preference] * len(batch), config=how)
            for prompt, result in zip(batch, results, strict=True):
                row: dict[str, Any] = {"prompt": prompt, "reply": result.text}
                if result.finish_reason == "length":
                    row["finished"] = False
                yield row | ({"weights": weights} if weights else {})


if __name__ == "__main__":
    main()

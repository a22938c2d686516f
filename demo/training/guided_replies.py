"""A bundle's replies to questions, for `pad-train pairs --replies` to rank: a second round of pairs for its PersRM.

Each question is answered for a person who wants more of a feature, for nobody, and for one who wants less. Two pairs a
question and feature: more against nobody's, and nobody's against less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pad_rt import GenerationConfig, GenerationResult, Generator, Preference


def main(argv: Sequence[str] | None = None) -> None:
    """Answer, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="text, one question a line")
    parser.add_argument("--limit", type=int, help="only the first of them")
    parser.add_argument("--feature", nargs="+", required=True, help="features of the bundle's PersRM")
    parser.add_argument("--beta", type=float, default=1.5)
    parser.add_argument("--tokens", type=int, default=48, help="of a reply at most")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSONL to write")
    options = parser.parse_args(argv)
    prompts = [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = prompts[: options.limit]
    config = GenerationConfig(beta=options.beta, max_new_tokens=options.tokens)
    generator = Generator.load(options.bundle)
    with options.output.open("w", encoding="utf-8") as file:
        for row in guided_pairs(generator, prompts, options.feature, config):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def guided_pairs(
    generator: Generator, prompts: Sequence[str], features: Sequence[str], config: GenerationConfig
) -> Iterator[dict[str, Any]]:
    """Rows as `pad-train` reads them."""
    size = generator.manifest.max_batch
    for start in tqdm(range(0, len(prompts), size), desc="answering", unit="batch"):
        batch = list(prompts[start : start + size])
        usual = generator.generate_batch(batch, config=config)
        for feature in features:
            more, less = (
                generator.generate_batch(
                    batch, preferences=[Preference(weights={feature: w})] * len(batch), config=config
                )
                for w in (1.0, -1.0)
            )
            for prompt, most, same, least in zip(batch, more, usual, less, strict=True):
                yield _row(prompt, most, same, feature)
                yield _row(prompt, same, least, feature)


def _row(prompt: str, chosen: GenerationResult, rejected: GenerationResult, feature: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "weights": {feature: 1.0},
        "chosen_finished": chosen.finish_reason != "length",
        "rejected_finished": rejected.finish_reason != "length",
    }


if __name__ == "__main__":
    main()

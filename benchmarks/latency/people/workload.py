"""What people ask for: long stories, each behind a system message of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tokenizers

from benchmarks.latency.people.task import PeopleTask

MAX_PEOPLE = 8
PROMPT_TOKENS, LONG_PROMPT_TOKENS = 64, 2000
_ROLES = ("a poet", "a sailor", "a teacher", "a cook", "a farmer", "a doctor", "a pilot", "a clown")
_TOPICS = (
    "a storm at sea", "the first snow", "a lost dog", "a market in spring", "an old house", "a long train journey",
    "a village by a river", "the night sky",
)  # fmt: skip


def make_task(
    tokenizer: Path, *, max_length: int, new_tokens: int, threads: int, core: int | None, files: dict[str, Path]
) -> PeopleTask:
    """The same prompts for all sides.

    Args:
        tokenizer: tokenizer.json of the bundle.
        max_length: of the bundle; the long prompt is shorter where it does not fit.
        new_tokens, threads, core, files: of the task.
    """
    encoder = tokenizers.Tokenizer.from_file(str(tokenizer))
    ids = np.random.default_rng(1).integers(100, 40_000, min(LONG_PROMPT_TOKENS, max_length - new_tokens))
    return PeopleTask(
        prompts=[_prompt(encoder, role, topic) for role, topic in zip(_ROLES, _TOPICS, strict=True)],
        strengths=np.linspace(0.4, 1.1, MAX_PEOPLE).round(2).tolist(),
        long_prompt=ids.tolist(),
        top_k=10,
        new_tokens=new_tokens,
        threads=threads,
        core=core,
        files={name: str(path) for name, path in files.items()},
    )


def _prompt(encoder: tokenizers.Tokenizer, role: str, topic: str) -> list[int]:
    """A chat of `PROMPT_TOKENS` tokens; what the user says is cut so that it comes to that."""
    head = f"<|im_start|>system\n{role.capitalize()} answers here.<|im_end|>\n<|im_start|>user\n"
    words = (
        f"Write a very long story about {topic}, told by {role}, for children and for their parents. Tell us what "
        "they saw, what they heard, whom they met on the way, what was said, and how all of them came home in the end, "
        "tired and happy. Take your time, and leave nothing out."
    )
    begin, middle, end = (encoder.encode(text).ids for text in (head, words, "<|im_end|>\n<|im_start|>assistant\n"))
    return [*begin, *middle[: PROMPT_TOKENS - len(begin) - len(end)], *end]

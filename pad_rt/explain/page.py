"""The page: a template in this package, filled with what each step weighed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from pad_rt.config import GenerationConfig
from pad_rt.explain.choice import Choice, weigh
from pad_rt.preference import Preference
from pad_rt.result import GenerationResult
from pad_rt.text.prompt import EncodedPrompt, Prompt
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import OptionError

_FULL_COLOUR = 2.0  # gain at which a token has all the colour there is: 7.4 times as likely, or a 7.4th
_MAX_ROWS = 12  # candidates that are listed of a token


def make_page(
    result: GenerationResult,
    prompt: Prompt,
    preferences: Sequence[tuple[Preference, float]],
    config: GenerationConfig,
    *,
    manifest: Manifest,
    tokenizer: Tokenizer,
) -> str:
    """HTML that needs nothing else and loads nothing. All texts are escaped.

    Args:
        result: a reply with its trace.
        prompt, preferences, config: what it was made of.
        manifest, tokenizer: the bundle's.

    Raises:
        OptionError: the result has no trace.
    """
    import jinja2

    if not result.trace:
        raise OptionError(
            "a result without a trace", expected="a guided reply", hint="generate it with a preference and trace=True"
        )
    ends = {*manifest.eos_token_ids, *config.stop_token_ids}
    choices = [weigh(step, id) for step, id in zip(result.trace, _chosen(result, ends), strict=True)]
    pieces = tokenizer.pieces([choice.chosen.id for choice in choices])
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = (resources.files("pad_rt.explain") / "page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        turns=_turns(prompt, tokenizer),
        wishes=[(wish.text, wish.weights, scale) for wish, scale in preferences],
        config=config,
        base=manifest.base,
        count=len(choices),
        changed=sum(choice.changed for choice in choices),
        full=math.exp(_FULL_COLOUR),
        tokens=[
            _token(piece, choice, is_end=place >= len(result.token_ids))
            for place, (piece, choice) in enumerate(zip(pieces, choices, strict=True))
        ],
        data=[_record(choice, tokenizer) for choice in choices],
    )


def _chosen(result: GenerationResult, ends: set[int]) -> list[int]:
    """Ids of all steps: the reply's, and the end of the turn if a step chose it."""
    chosen = list(result.token_ids)
    for step in result.trace[len(chosen) :]:
        ended = [place for place, id in enumerate(step.candidates.tolist()) if id in ends]
        chosen.append(int(step.candidates[max(ended, key=lambda place: step.scores[place])]))
    return chosen


def _turns(prompt: Prompt, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Roles and texts of a prompt."""
    if isinstance(prompt, str):
        return [("user", prompt)]
    if isinstance(prompt, EncodedPrompt):
        return [("prompt", tokenizer.decode(prompt.base, skip_special_tokens=False))]
    return [(str(message["role"]), _text(message.get("content"))) for message in prompt]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


def _token(piece: str, choice: Choice, *, is_end: bool) -> dict[str, Any]:
    """One token for the page's text: spaces in front of a word have no colour."""
    word = piece.lstrip(" ") or piece
    return {
        "space": piece.removesuffix(word),
        "lines": word.split("\n"),
        "is_silent": not piece,
        "is_end": is_end,
        "gain": choice.gain,
        "colour": min(1.0, abs(choice.gain) / _FULL_COLOUR),
        "changed": choice.changed,
    }


def _record(choice: Choice, tokenizer: Tokenizer) -> dict[str, Any]:
    """One token for the page's table."""
    rows = [
        candidate
        for place, candidate in enumerate(choice.candidates)
        if place < _MAX_ROWS or candidate in (choice.chosen, choice.favourite)
    ]
    return {
        "chosen": rows.index(choice.chosen),
        "favourite": rows.index(choice.favourite),
        "gain": round(choice.gain, 4),
        "changed": choice.changed,
        "more": len(choice.candidates) - len(rows),
        "candidates": [
            [
                tokenizer.name(row.id),
                round(row.base_chance, 6),
                round(row.guided_chance, 6),
                round(row.base_logit, 3),
                round(row.reward, 3),
                round(row.score, 3),
            ]
            for row in rows
        ],
    }

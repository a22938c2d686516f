"""Critics of replies while pairs are made: scorers, which rank them, and vetoes, which keep bad ones from winning."""

from __future__ import annotations

import importlib
import importlib.util
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pad_runtime.errors import OptionError
from pad_train.pairs.contrast import StyleContrast
from pad_train.pairs.feature import CONTRAST, PairSampling
from pad_train.train.backbone import Backbone

Scorer: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, replies) -> one score a reply, higher where the reply has more of the feature."""

Veto: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[str]]
"""(prompts, replies) -> why nobody should want a reply, such as "leaves the question"; "" if somebody may."""


def no_veto(_: Sequence[str], replies: Sequence[str]) -> list[str]:
    """Nothing against any reply."""
    return [""] * len(replies)


@dataclass(frozen=True)
class Critic:
    """What is asked about the replies of one feature."""

    scorer: Scorer
    veto: Veto = no_veto


def load_critic(sampling: PairSampling, backbone: Backbone | None) -> Critic:
    """The scorer and, if there is one, the veto that a feature's sampling names.

    Args:
        backbone: what the scorer "contrast" asks.

    Raises:
        OptionError: as `load_scorer`; or there is no backbone for the scorer "contrast".
    """
    veto = checked_veto(sampling.veto, _load_callable("veto", sampling.veto)) if sampling.veto else no_veto
    parts: list[tuple[Scorer, float]] = []
    for name, factor in sampling.scorer:
        if name != CONTRAST:
            parts.append((load_scorer(name), factor))
        elif backbone is not None:
            parts.append((StyleContrast(backbone, sampling.styles), factor))
        else:
            raise OptionError("no base for the scorer contrast", expected="--base")
    return Critic(_sum_of(parts), veto)


def _sum_of(parts: Sequence[tuple[Scorer, float]]) -> Scorer:
    def score(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        scores = [[factor * mark for mark in scorer(prompts, replies)] for scorer, factor in parts]
        return [sum(marks) for marks in zip(*scores, strict=True)]

    return score


def load_scorer(spec: str) -> Scorer:
    """Load "MODULE:NAME", "FILE.py:NAME" (a callable), or "hf:DIR" (a sequence-classification reward model).

    Raises:
        OptionError: nothing there to load, or not a callable.
    """
    kind, _, rest = spec.partition(":")
    if kind == "hf":
        return checked(spec, _load_reward_model(Path(rest)))
    return checked(spec, _load_callable("scorer", spec))


def checked(spec: str, scorer: Callable[[Sequence[str], Sequence[str]], Any]) -> Scorer:
    """A scorer that raises an OptionError if it does not return one finite number for each reply."""

    def score(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        answer = scorer(prompts, replies)
        try:
            scores = [float(value) for value in answer]
        except (TypeError, ValueError):
            raise OptionError(
                f"scorer {spec} gave {reprlib.repr(answer)} for {len(replies)} replies",
                expected="one finite number each",
            ) from None
        if len(scores) != len(replies) or not all(math.isfinite(value) for value in scores):
            raise OptionError(
                f"scorer {spec} gave {scores[:4]} for {len(replies)} replies", expected="one finite number each"
            )
        return scores

    return score


def checked_veto(spec: str, veto: Callable[[Sequence[str], Sequence[str]], Any]) -> Veto:
    """A veto that raises an OptionError if it does not return one text for each reply."""

    def reasons(prompts: Sequence[str], replies: Sequence[str]) -> list[str]:
        answer = list(veto(prompts, replies))
        if len(answer) != len(replies) or not all(isinstance(reason, str) for reason in answer):
            raise OptionError(
                f"veto {spec} gave {reprlib.repr(answer)} for {len(replies)} replies", expected="one text each"
            )
        return answer

    return reasons


def _load_callable(what: str, spec: str) -> Callable[[Sequence[str], Sequence[str]], Any]:
    place, _, name = spec.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # the user's module can raise anything
        kinds = "MODULE:NAME, FILE.py:NAME or hf:DIR" if what == "scorer" else "MODULE:NAME or FILE.py:NAME"
        raise OptionError(f"{what} {spec} cannot be loaded ({error})", expected=kinds) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise OptionError(f"{what} {spec}: {place} has no callable {name}", expected="a function of (prompts, replies)")
    return found  # type: ignore[no-any-return]


@cache
def _load_file(path: Path) -> Any:
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None or not path.is_file():
        raise OSError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _load_reward_model(folder: Path) -> Scorer:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not folder.is_dir():  # transformers would search for a model with that name
        raise OptionError(f"scorer hf:{folder} does not exist", expected="a reward model folder")
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a checkpoint can fail in any way
        raise OptionError(f"scorer hf:{folder} cannot be loaded ({error})", expected="a reward model folder") from error
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers fills them with random numbers
        raise OptionError(
            f"scorer hf:{folder} has no {missing[0]}", expected="a reward model folder, its score head included"
        )
    if model.config.num_labels != 1:
        raise OptionError(
            f"scorer hf:{folder} has {model.config.num_labels} labels", expected="a reward model, with one"
        )
    model.eval()
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise OptionError(f"scorer hf:{folder} has a tokenizer without pad and eos token", expected="one of them")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id  # decoders score at the last token that is not padding

    def score(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        if tokenizer.chat_template:
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}], tokenize=False
                )
                for prompt, reply in zip(prompts, replies, strict=True)
            ]
            batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        else:  # reward models of the BERT kind take two segments
            batch = tokenizer(list(prompts), list(replies), return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            return [float(value) for value in model(**batch).logits[:, 0]]

    return score

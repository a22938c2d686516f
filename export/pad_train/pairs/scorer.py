"""Scorers, which rank replies while pairs are made: Python callables or Hugging Face reward models."""

from __future__ import annotations

import importlib
import importlib.util
import math
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pad_runtime.errors import OptionError

Scorer: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, replies) -> one score a reply, higher where the reply has more of the feature."""


def load_scorer(spec: str) -> Scorer:
    """Load "MODULE:NAME", "FILE.py:NAME" (a callable), or "hf:DIR" (a sequence-classification reward model).

    Raises:
        OptionError: nothing there to load, or not a callable.
    """
    kind, _, rest = spec.partition(":")
    if kind == "hf":
        return checked(spec, _load_reward_model(Path(rest)))
    place, _, name = spec.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # the user's module can raise anything
        raise OptionError(
            f"scorer {spec} cannot be loaded ({error})", expected="MODULE:NAME, FILE.py:NAME or hf:DIR"
        ) from error
    scorer = getattr(module, name, None)
    if not callable(scorer):
        raise OptionError(f"scorer {spec}: {place} has no callable {name}", expected="a function of (prompts, replies)")
    return checked(spec, scorer)


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

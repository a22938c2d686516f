"""The class of a checkpoint or adapter: a causal language model, or a model with a score head, which is refused.

A reward model or classifier has a decoder like any other, but what it has learned is read from the hidden states by its
score head. An lm_head over them, where there is one, knows nothing of it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pad_export.read.spec import SITE_MODULES
from pad_runtime.errors import AdapterError, CheckpointError

_CALLABLE_HINT = (
    "a score head cannot weigh tokens, but it can rank replies: wrap it in a Python callable, the scorer of a feature "
    "for `pad-train pairs`"
)
_SCORER_HINT = (
    'a score head cannot weigh tokens, but it can rank replies: "hf:{path}" is the scorer of a feature '
    "for `pad-train pairs`"
)
_BARE_HINT = (
    "give the causal language model that it was taken from: a decoder alone has no lm_head that learned with it"
)
_OTHER_HINT = "give a causal language model, or train the PersRM with pad-train"

# Name endings of transformers' classes with an lm_head; the third is of classes that read images or sound, too.
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_SCORING = re.compile(r"Classification|Reward|Score|Regression|Value|QuestionAnswering")
_CAUSAL_TASK = "CAUSAL_LM"
_SCORING_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_LINEARS = {module.rpartition(".")[2] for modules in SITE_MODULES.values() for module in modules}
_LANGUAGE_MODULES = {"lm_head", "embed_tokens", *_LINEARS}


def check_architectures(folder: Path, config: dict[str, Any]) -> None:
    """Check that config.json names a causal language model, or nothing.

    Raises:
        CheckpointError: it names a classifier or reward model, a decoder without lm_head, or an encoder; says what such
            a model can be used for.
    """
    named = config.get("architectures") or []
    for name in named if isinstance(named, list) else [named]:
        if not isinstance(name, str):
            raise CheckpointError(f"{folder}: architectures is {named!r}", expected="a list of class names")
        if name.endswith(_CAUSAL):
            continue
        if name.endswith("ForSequenceClassification") and _num_labels(config) == 1:
            hint = _SCORER_HINT.format(path=folder)
        elif _SCORING.search(name):
            hint = _CALLABLE_HINT
        else:
            hint = _BARE_HINT if name.endswith("Model") else _OTHER_HINT
        raise CheckpointError(f"{folder} is a {name}", expected="a causal language model (...ForCausalLM)", hint=hint)


def check_task(folder: Path, config: dict[str, Any]) -> None:
    """Check that adapter_config.json was saved for a causal language model, or names no task.

    An embedding model's adapter (FEATURE_EXTRACTION) was trained through pooled hidden states: no lm_head took part.

    Raises:
        AdapterError: the adapter is of a classifier, or of another model that was trained without an lm_head.
    """
    task = config.get("task_type")
    if not task or task == _CAUSAL_TASK:
        return
    if task == "SEQ_CLS":
        hint = f"merge it into its own AutoModelForSequenceClassification: {_SCORER_HINT.format(path='DIR')}"
    else:
        hint = _CALLABLE_HINT if task in _SCORING_TASKS else _OTHER_HINT
    raise AdapterError(
        f"{folder} has the task_type {task!r}",
        expected=f"a LoRA of a causal language model ({_CAUSAL_TASK})",
        hint=hint,
    )


def is_language_module(name: str) -> bool:
    """Whether a causal language model has a module of that name, such as "q_proj", "model.layers.0.mlp.up_proj"."""
    last = name.rpartition(".")[2]
    return last in _LANGUAGE_MODULES or last.endswith("norm")


def foreign_hint(module: str) -> str:
    """The hint for a module that no language model has: it is mostly a score head, and merging would lose it."""
    return (
        f"no language model here has {module}; a score head cannot weigh tokens, but it can rank replies: "
        "wrap it in a Python callable, the scorer of a feature for `pad-train pairs`"
    )


def _num_labels(config: dict[str, Any]) -> int:
    """Number of labels, counted as transformers does: two unless the config says otherwise."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else config.get("num_labels") or 2

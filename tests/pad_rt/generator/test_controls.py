"""Penalties, bias, bans and min_p of a config, guided and plain: transformers' processors choose the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from transformers.generation import logits_process as theirs

from pad_rt import EncodedPrompt, Generator
from pad_runtime.errors import OptionError
from pad_runtime.rows.sequence import Controls
from tests.support.error_checks import refused
from tests.support.guided_models import BETA, NUM_TOKENS, TOP_K, Models, config

READ = (((5, 61, 62, 63, 8), (9, 8, 7, 6, 5, 4, 20)), ((70, 71, 72, 71), (25, 60)), ((80, 81, 82, 83), (4, 61, 60, 59)))
PREFERENCES = [None, "x"]
FAVOURITES = dict.fromkeys(range(60, 84), 5.0)  # a reply of few tokens repeats itself
BIAS = FAVOURITES | {60: -3.0, 61: 7.0, 17: 2.5, 70: -100.0}

Process: TypeAlias = Callable[[list[int], list[int], torch.Tensor], torch.Tensor]  # prompt, reply, logits [1, V]


def nothing(prompt: list[int], reply: list[int], logits: torch.Tensor) -> torch.Tensor:
    return logits


def _ids(prompt: list[int], reply: list[int]) -> torch.Tensor:
    return torch.tensor([[*prompt, *reply]])


def _counts(reply: list[int], logits: torch.Tensor) -> torch.Tensor:
    return torch.bincount(torch.tensor(reply, dtype=torch.int64), minlength=logits.shape[1]).float()[None]


def repetition(prompt: list[int], reply: list[int], logits: torch.Tensor) -> torch.Tensor:
    return theirs.RepetitionPenaltyLogitsProcessor(1.7)(_ids(prompt, reply), logits)


def presence(prompt: list[int], reply: list[int], logits: torch.Tensor) -> torch.Tensor:
    return logits - 1.5 * (_counts(reply, logits) > 0).float()


def frequency(prompt: list[int], reply: list[int], logits: torch.Tensor) -> torch.Tensor:
    return logits - 0.6 * _counts(reply, logits)


def bias(values: dict[int, float]) -> Process:
    pairs: list[list[list[int] | float]] = [[[token], value] for token, value in values.items()]
    return lambda prompt, reply, logits: theirs.SequenceBiasLogitsProcessor(pairs)(_ids(prompt, reply), logits)


def banned(*ids: int) -> Process:
    return lambda prompt, reply, logits: theirs.SuppressTokensLogitsProcessor(ids)(_ids(prompt, reply), logits)


def no_repeat(size: int) -> Process:
    return lambda prompt, reply, logits: theirs.NoRepeatNGramLogitsProcessor(size)(_ids(prompt, reply), logits)


def all_of_them(prompt: list[int], reply: list[int], logits: torch.Tensor) -> torch.Tensor:
    for process in (repetition, presence, frequency, no_repeat(2)):
        logits = process(prompt, reply, logits)
    return logits


# As options are given, what they do, and a mistake that is made in earnest.
OPTIONS: dict[str, tuple[dict[str, Any], Process, Process]] = {
    "repetition": (
        {"repetition_penalty": 1.7},
        repetition,
        lambda prompt, reply, logits: repetition(reply or prompt[:1], reply, logits),  # without the prompt
    ),
    "presence": (
        {"presence_penalty": 1.5},
        presence,
        lambda prompt, reply, logits: presence(prompt, [*prompt, *reply], logits),
    ),
    "frequency": (
        {"frequency_penalty": 0.6},
        frequency,
        lambda prompt, reply, logits: frequency(prompt, list({*reply}), logits),
    ),
    "bias": (
        {"logit_bias": {str(id): value for id, value in BIAS.items()}},
        bias({id: value - FAVOURITES.get(id, 0.0) for id, value in BIAS.items()}),
        bias({id + 1: value - FAVOURITES.get(id, 0.0) for id, value in BIAS.items()}),
    ),
    "bans": (
        {"banned_token_ids": list(range(60, 80, 2))},
        banned(*range(60, 80, 2)),
        banned(*(id ^ 7 for id in range(60, 80, 2))),  # bits from the other end
    ),
    "no token twice": (
        {"no_repeat_ngram": 1},
        no_repeat(1),
        lambda prompt, reply, logits: no_repeat(1)(reply or [5], [], logits),  # the reply's alone
    ),
    "no two tokens twice": ({"no_repeat_ngram": 2}, no_repeat(2), no_repeat(3)),
    "no three tokens twice": ({"no_repeat_ngram": 3}, no_repeat(3), no_repeat(2)),
    "all of them": (
        {"repetition_penalty": 1.7, "presence_penalty": 1.5, "frequency_penalty": 0.6, "banned_token_ids": (60, 61)}
        | {"no_repeat_ngram": 2},
        lambda *asked: banned(60, 61)(*asked[:2], all_of_them(*asked)),
        all_of_them,
    ),
}


def encode(index: int, preference: str | None) -> EncodedPrompt:
    prompt, reward = READ[index]
    return EncodedPrompt(prompt, None if preference is None else reward)


def weigh(models: Models, index: int, preference: str | None, process: Process, reply: list[int]) -> torch.Tensor:
    """z' = process(z) + bias of the favourites; score(a) = z' + beta (log p_persrm - log p_base), [1, V].

    It is minus infinity outside the top k by z'.
    """
    prompt, reward = map(list, READ[index])
    logits = models.base.logits([*prompt, *reply])[:1]
    score = controlled = bias(FAVOURITES)(prompt, reply, process(prompt, reply, logits))
    if preference is not None:
        persrm = models.persrms["plain"].logits([*reward, *reply])[:1]
        score = controlled + BETA * (persrm.log_softmax(-1) - logits.log_softmax(-1))
    inside = theirs.TopKLogitsWarper(TOP_K)(_ids(prompt, reply), controlled)
    return score.masked_fill(~torch.isfinite(inside), -torch.inf)


def decode(models: Models, preference: str | None, process: Process) -> list[list[int]]:
    """Greedy replies to all prompts."""
    replies: list[list[int]] = [[] for _ in READ]
    for index, reply in enumerate(replies):
        for _ in range(NUM_TOKENS):
            reply.append(int(weigh(models, index, preference, process, reply).argmax()))
    return replies


@pytest.mark.parametrize("preference", PREFERENCES)
@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_reply_is_what_processors_choose(
    models: Models, generator: Generator, name: str, preference: str | None
) -> None:
    """Alone and in a batch of others; the same done wrongly, or not at all, chooses other tokens."""
    options, right, wrong = OPTIONS[name]
    settings = config(**{"logit_bias": FAVOURITES, **options})
    prompts = [encode(index, preference) for index in range(len(READ))]
    batch = generator.generate_batch(prompts, preferences=[preference] * len(READ), config=settings)
    replies = [list(result.token_ids) for result in batch]
    assert replies == decode(models, preference, right)
    assert list(generator.generate(prompts[1], preference=preference, config=settings).token_ids) == replies[1]
    for mistake in (wrong, nothing):
        assert replies != decode(models, preference, mistake)


@pytest.mark.parametrize("preference", PREFERENCES)
def test_samples_stay_inside_min_p(models: Models, generator: Generator, preference: str | None) -> None:
    """The tokens that transformers' own would keep; without min_p, some are others."""
    temperature, min_p = 1.5, 0.5
    warper = theirs.MinPLogitsWarper(min_p)

    def count_outside(**options: Any) -> int:
        settings = config(temperature=temperature, max_new_tokens=40, seed=3, logit_bias=FAVOURITES, **options)
        reply = list(generator.generate(encode(0, preference), preference=preference, config=settings).token_ids)
        scores = [weigh(models, 0, preference, nothing, reply[:count]) / temperature for count in range(40)]
        kept = [torch.isfinite(warper(_ids([], []), each))[0] for each in scores]
        return sum(not inside[id] for id, inside in zip(reply, kept, strict=True))

    assert count_outside(min_p=min_p) == 0
    assert count_outside() > 5


def test_what_is_not_set_costs_nothing(generator: Generator) -> None:
    """No logits are changed, no mask is made, no step is traced; nor where an n-gram is too long to come twice."""
    for settings in (config(), config(no_repeat_ngram=10**30), config(logit_bias={}, banned_token_ids=())):
        request = generator.submit(encode(0, "x"), preference="x", config=settings).request
        assert request.sequence.controls == Controls()
        assert (request.allowed, request.wants_trace) == (None, False)
    request = generator.submit(encode(0, "x"), preference="x", config=config(no_repeat_ngram=3, logprobs=0)).request
    assert request.allowed is not None
    assert request.wants_trace


def test_options_of_others_change_nothing(generator: Generator) -> None:
    """All kinds of options side by side, twice, so that slots are used again: each reply as alone."""
    configs = [
        config(**{"logit_bias": FAVOURITES, "stop_token_ids": 2, "temperature": 1.5 * (number % 2), **options})
        for number, options in enumerate([{}, {"regex": "[a-f]{9,40}"}, *(given for given, _, _ in OPTIONS.values())])
    ]
    count = len(configs)
    preferences = [(None, "x")[number % 3 == 0] for number in range(count)]
    prompts = [encode(number % 3, preference) for number, preference in enumerate(preferences)]
    alone = [
        generator.generate(prompt, preference=preference, config=each).token_ids
        for prompt, preference, each in zip(prompts, preferences, configs, strict=True)
    ]
    together = generator.generate_batch(prompts * 2, preferences=preferences * 2, configs=configs * 2)
    assert [reply.token_ids for reply in together] == alone * 2
    assert len(set(alone)) > count / 2


def test_ids_beyond_the_vocabulary_are_refused(generator: Generator) -> None:
    size = generator.manifest.vocab_size
    expected = f"ids below {size}, the vocabulary's size"
    for name, value in (
        ("stop_token_ids", (size,)), ("logit_bias", {3: 1.0, size: 1.0}), ("banned_token_ids", [3, size]),
    ):  # fmt: skip
        with refused(OptionError, given=f"{name} with {size}", expected=expected):
            generator.generate(EncodedPrompt([5]), config=config(**{name: value}))
    settings = config(logit_bias={size - 1: 1.0}, banned_token_ids=size - 2, max_new_tokens=1)
    assert generator.generate(EncodedPrompt([5]), config=settings).token_ids

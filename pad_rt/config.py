"""Options of a generation."""

from __future__ import annotations

import difflib
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

from pad_runtime.errors import OptionError
from pad_runtime.rows.sequence import LEAST_FACTOR, MAX_STRENGTH

MAX_SEED = 2**63
FormKind: TypeAlias = Literal["json_schema", "regex", "grammar"]
_DIGITS = re.compile("[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Options of one generation. The defaults are the paper's (arXiv 2410.04070): beta 1, k 10, greedy.

    score(a) = z_base(a) + beta * sum_j R_j(a) over the base's top_k tokens; the next token is the argmax, or a sample
    of softmax(score / temperature).

    Args:
        beta: strength of the reward, any finite number; 0 gives the base's choices, below 0 steers away from the
            preference.
        top_k: number of candidates that the base proposes, >= 1.
        max_new_tokens: cap on the generated tokens, >= 1.
        temperature: >= 0; 0 is greedy.
        top_p: sample from the likeliest candidates that together have this probability, 0 < top_p <= 1; 1 keeps all.
        min_p: sample from candidates of at least this part of the likeliest one's probability, 0 <= min_p < 1; 0 keeps
            all.
        seed: seed of the sampling noise, 0 <= seed < 2**63.
        repetition_penalty: divides the base's logits above 0, and multiplies those below, of tokens that its prompt or
            the reply has, > 0; 1 is off (CTRL, arXiv 1909.05858).
        presence_penalty: taken off the base's logit of each token that the reply has; 0 is off.
        frequency_penalty: taken off for each time that the reply has the token; 0 is off.
        no_repeat_ngram: a reply never has so many tokens in a row that it, or the base's prompt, had before; 0 is off.
        logit_bias: added to the base's logits, by token id.
        banned_token_ids: ids that a reply never has; a single id is taken as a list of one.
        json_schema: a JSON schema, as an object or JSON text, that the whole reply is valid by.
        regex: a regular expression that the whole reply matches.
        grammar: a grammar in llguidance's Lark that the whole reply is of. At most one of these three; they need the
            extra `grammar`.
        logprobs: report log-probabilities of each token and of so many of the likeliest candidates, 0 to top_k; None
            reports none. See `TokenLogprobs`.
        stop: strings before which a reply ends; a single string is one stop string. They may contain special tokens,
            such as "<|im_end|>", although replies do not show those.
        stop_token_ids: ids that end a reply, in addition to the bundle's ends of turn; a single id is taken as a list
            of one. They are no part of the reply, and `offer_end` does not offer them.
        base_sees_preference: put the preference into the base's prompt too, as the official code does.
        offer_end: make the end of the turn a candidate at every step, beside the top_k. Without it (as in the paper) a
            preference for short replies has little effect: the end of the turn is seldom among the base's top_k.
        template_args: variables for the base's chat template, such as {"enable_thinking": False}; JSON values.

    Raises:
        OptionError: a value of the wrong type or outside its range.
    """

    beta: float = 1.0
    top_k: int = 10
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    banned_token_ids: Sequence[int] = ()
    json_schema: Mapping[str, Any] | str | None = field(default=None, hash=False)
    regex: str | None = None
    grammar: str | None = None
    logprobs: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    base_sees_preference: bool = False
    offer_end: bool = False
    template_args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        checked = {
            "beta": _check_float("beta", self.beta),
            "top_k": _check_int("top_k", self.top_k, minimum=1),
            "max_new_tokens": _check_int("max_new_tokens", self.max_new_tokens, minimum=1),
            "temperature": _check_float("temperature", self.temperature, "a finite number >= 0", lambda t: t >= 0),
            "top_p": _check_float("top_p", self.top_p, "a number in (0, 1]", lambda p: 0 < p <= 1),
            "min_p": _check_float("min_p", self.min_p, "a number in [0, 1)", lambda p: 0 <= p < 1),
            "seed": _check_int("seed", self.seed, minimum=0, limit=MAX_SEED),
            "repetition_penalty": _check_float(
                "repetition_penalty",
                self.repetition_penalty,
                f"a number from {LEAST_FACTOR:g} to {MAX_STRENGTH:g}",
                lambda p: LEAST_FACTOR <= p <= MAX_STRENGTH,
            ),
            "presence_penalty": _check_strength("presence_penalty", self.presence_penalty),
            "frequency_penalty": _check_strength("frequency_penalty", self.frequency_penalty),
            "no_repeat_ngram": _check_int("no_repeat_ngram", self.no_repeat_ngram, minimum=0),
            "logit_bias": _check_bias(self.logit_bias),
            "banned_token_ids": _check_ids("banned_token_ids", self.banned_token_ids),
            "json_schema": _check_schema(self.json_schema),
            "regex": _check_text("regex", self.regex),
            "grammar": _check_text("grammar", self.grammar),
            "logprobs": None if self.logprobs is None else _check_int("logprobs", self.logprobs, minimum=0),
            "stop": _check_stop(self.stop),
            "stop_token_ids": _check_ids("stop_token_ids", self.stop_token_ids),
            "template_args": _check_template_args(self.template_args),
        }
        for name in ("base_sees_preference", "offer_end"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r}", expected="True or False")
        forms = [name for name in ("json_schema", "regex", "grammar") if checked[name] is not None]
        if len(forms) > 1:
            raise OptionError(" beside ".join(forms), expected="at most one of json_schema, regex and grammar")
        if self.logprobs is not None and self.logprobs > self.top_k:
            raise OptionError(f"logprobs={self.logprobs!r}", expected=f"at most top_k, {self.top_k}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def form(self) -> tuple[FormKind, Any] | None:
        """What the whole reply must be of: the option's name and its value; None for any text."""
        forms: tuple[tuple[FormKind, Any], ...] = (
            ("json_schema", self.json_schema),
            ("regex", self.regex),
            ("grammar", self.grammar),
        )
        return next((form for form in forms if form[1] is not None), None)

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """A config from option names and values, such as a JSON object.

        Raises:
            OptionError: a name that is no option (the most similar option is suggested), or a value outside its range.
        """
        names = [option.name for option in fields(cls)]
        for name in options:
            if name not in names:
                nearest = difflib.get_close_matches(str(name).lower().replace("-", "_"), names, n=1)
                raise OptionError(
                    f"unknown option {name!r}",
                    expected=f"one of {', '.join(names)}",
                    hint=f"did you mean {nearest[0]}?" if nearest else "",
                )
        return cls(**options)


ConfigLike: TypeAlias = GenerationConfig | Mapping[str, Any] | None
"""What a caller may give: a config, a mapping of its options, or None for the defaults."""


def make_config(config: ConfigLike) -> GenerationConfig:
    """What a caller gives as options; None takes the defaults.

    Raises:
        OptionError: anything else, or as `GenerationConfig`.
    """
    if config is None:
        return GenerationConfig()
    if isinstance(config, Mapping):
        return GenerationConfig.from_mapping(config)
    if not isinstance(config, GenerationConfig):
        raise OptionError(f"a config of type {type(config).__name__}", expected="a GenerationConfig or a mapping")
    return config


def _check_float(
    name: str,
    value: object,
    expected: str = "a finite number",
    is_within: Callable[[float], bool] = math.isfinite,
) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and is_within(number):
            return number
    raise OptionError(f"{name}={value!r}", expected=expected)


def _check_strength(name: str, value: object) -> float:
    expected = f"a number from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
    return _check_float(name, value, expected, lambda number: abs(number) <= MAX_STRENGTH)


def _check_int(name: str, value: object, *, minimum: int, limit: int | None = None) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if number >= minimum and (limit is None or number < limit):
            return number
    expected = f"an integer >= {minimum}" if limit is None else f"an integer from {minimum} to {limit - 1}"
    raise OptionError(f"{name}={value!r}", expected=expected)


def _check_stop(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) and string for string in strings):
        raise OptionError(f"stop={stop!r}", expected="a non-empty string or a list of them")
    return tuple(strings)


def _check_ids(name: str, ids: object) -> tuple[int, ...]:
    listed = (ids,) if isinstance(ids, Integral) else ids
    if not isinstance(listed, list | tuple):
        raise OptionError(f"{name}={reprlib.repr(ids)}", expected="an integer >= 0 or a list of them")
    return tuple(_check_int(name, id, minimum=0) for id in listed)


def _check_bias(bias: object) -> dict[int, float]:
    """Numbers by token id; OpenAI's clients write ids as strings, for their JSON has no other keys."""
    if not isinstance(bias, Mapping):
        raise OptionError(f"logit_bias={reprlib.repr(bias)}", expected="token ids and numbers, such as {50256: -100}")
    checked: dict[int, float] = {}
    for key, value in bias.items():
        is_written = isinstance(key, str) and _DIGITS.fullmatch(key)
        id = _check_int("token id of logit_bias", int(key) if is_written else key, minimum=0)
        if id in checked:
            raise OptionError(f"logit_bias of token {id} given twice", expected="one number a token")
        checked[id] = _check_strength(f"logit_bias of token {id}", value)
    return checked


def _check_schema(schema: object) -> dict[str, Any] | None:
    """A copy, as JSON values."""
    if schema is None:
        return None
    copied = _copy_json(schema)
    if copied is None and isinstance(schema, str):
        with suppress(ValueError, RecursionError):
            copied = _copy_json(json.loads(schema))
    if copied is None:
        raise OptionError(
            f"json_schema={reprlib.repr(schema)}", expected='a JSON object, such as {"type": "integer"}, or its text'
        )
    return copied


def _check_text(name: str, text: object) -> str | None:
    if text is None or isinstance(text, str):
        return text
    raise OptionError(f"{name}={reprlib.repr(text)}", expected="text")


def _check_template_args(arguments: object) -> dict[str, Any]:
    copied = _copy_json(arguments)
    if copied is None:
        raise OptionError(
            f"template_args={reprlib.repr(arguments)}",
            expected='names and JSON values, such as {"enable_thinking": False}',
        )
    return copied


def _copy_json(value: object) -> dict[str, Any] | None:
    """A mapping of names to JSON values, copied; None for anything else."""
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        with suppress(TypeError, ValueError, RecursionError):
            copied: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
            return copied
    return None

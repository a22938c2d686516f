"""Options of a generation."""

from __future__ import annotations

import difflib
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeAlias

from pad_runtime.errors import OptionError

MAX_SEED = 2**63


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
        seed: seed of the sampling noise, 0 <= seed < 2**63.
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
    seed: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    base_sees_preference: bool = False
    offer_end: bool = False
    template_args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        checked = {
            "beta": _check_float("beta", self.beta, expected="a finite number"),
            "top_k": _check_int("top_k", self.top_k, minimum=1),
            "max_new_tokens": _check_int("max_new_tokens", self.max_new_tokens, minimum=1),
            "temperature": _check_float("temperature", self.temperature, expected="a finite number >= 0", minimum=0.0),
            "top_p": _check_float("top_p", self.top_p, expected="a number in (0, 1]", minimum=0.0, maximum=1.0),
            "seed": _check_int("seed", self.seed, minimum=0, limit=MAX_SEED),
            "stop": _check_stop(self.stop),
            "stop_token_ids": _check_ids("stop_token_ids", self.stop_token_ids),
            "template_args": _check_template_args(self.template_args),
        }
        if checked["top_p"] == 0.0:
            raise OptionError(f"top_p={self.top_p!r}", expected="a number in (0, 1]")
        for name in ("base_sees_preference", "offer_end"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r}", expected="True or False")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

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
    name: str, value: object, *, expected: str, minimum: float = -math.inf, maximum: float = math.inf
) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and minimum <= number <= maximum:
            return number
    raise OptionError(f"{name}={value!r}", expected=expected)


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


def _check_template_args(arguments: object) -> dict[str, Any]:
    if isinstance(arguments, Mapping) and all(isinstance(name, str) for name in arguments):
        try:
            copied: dict[str, Any] = json.loads(json.dumps(dict(arguments), allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            pass
        else:
            return copied
    raise OptionError(
        f"template_args={reprlib.repr(arguments)}", expected='names and JSON values, such as {"enable_thinking": False}'
    )

"""Options that several commands have: how they are declared, and what is read out of them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pad_rt.config import GenerationConfig
from pad_rt.generator import Generator
from pad_rt.history import History
from pad_rt.hub import find_bundle
from pad_rt.preference import Preference, parse_weight
from pad_rt.taste.taste import Taste
from pad_rt.text.prompt import Prompt
from pad_runtime.command import read_stdin
from pad_runtime.devices.choice import DEVICES
from pad_runtime.errors import OptionError
from pad_runtime.loaded_bundle import Bundle

_CONSTANTS = {"True": True, "False": False, "None": None}


# -- reading ---------------------------------------------------------------------------------------------------------


def read_prompt(options: argparse.Namespace) -> Prompt:
    """The user's message, behind the system message if there is one."""
    text = read_stdin().rstrip("\r\n") if options.prompt == "-" else options.prompt
    return text if options.system is None else History(options.system).prompt(text)


def read_config(options: argparse.Namespace) -> GenerationConfig:
    """The options that were given over the defaults of `GenerationConfig`."""
    names = GenerationConfig.__dataclass_fields__
    given: dict[str, Any] = {name: value for name, value in vars(options).items() if name in names}
    given |= {name: _read_at(given[name]) for name in ("json_schema", "grammar") if name in given}
    return GenerationConfig(
        **given,
        logit_bias=_read_logit_bias(options.logit_bias_pairs),
        template_args=read_template_args(options.template_arg),
    )


def _read_at(argument: str) -> str:
    """@FILE is the text of a file, anything else is the text itself."""
    if not argument.startswith("@"):
        return argument
    try:
        return Path(argument[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"{argument} cannot be read: {error}", expected="a file in UTF-8") from None


def _read_logit_bias(arguments: list[str]) -> dict[int, float]:
    read: dict[int, float] = {}
    for argument in arguments:
        name, _, number = argument.partition("=")
        try:
            id, bias = int(name), float(number)
        except ValueError:
            raise OptionError(f"--logit-bias {argument!r}", expected="ID=B", hint="such as 50256=-100") from None
        if id in read:
            raise OptionError(f"--logit-bias {id} given twice", expected="one number a token")
        read[id] = bias
    return read


def read_template_args(arguments: list[str]) -> dict[str, Any]:
    """NAME=VALUE: a JSON value or a Python constant is that value, anything else is text."""
    read: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not name or not equals:
            raise OptionError(
                f"--template-arg {argument!r}", expected="NAME=VALUE", hint="such as enable_thinking=false"
            )
        if name in read:
            raise OptionError(f"--template-arg {name} given twice", expected="one value a name")
        try:
            read[name] = _CONSTANTS[text] if text in _CONSTANTS else json.loads(text)
        except (ValueError, RecursionError):
            read[name] = text
    return read


def read_preference(options: argparse.Namespace) -> Preference | None:
    """What --preference and --weight ask for; None without them."""
    weights: dict[str, float] = {}
    for argument in options.weight:
        name, weight = parse_weight(argument)
        if name in weights:
            raise OptionError(f"--weight {name} given twice", expected="one weight a feature")
        weights[name] = weight
    if options.taste is not None and weights:
        raise OptionError("--weight beside --taste", expected="one of them", hint="a taste gives all weights")
    if options.preference is None and not weights:
        return None
    return Preference(text=options.preference, weights=weights)


def with_taste(preference: Preference | None, options: argparse.Namespace, generator: Generator) -> Preference | None:
    """A preference with the weights of the file of --taste; as it is without the option."""
    if options.taste is None:
        return preference
    weights = Taste.load(options.taste, generator).preference().weights
    return Preference(text=None if preference is None else preference.text, weights=weights)


def open_bundle(options: argparse.Namespace) -> Bundle:
    """The bundle on its device; notes go to stderr."""
    bundle = Bundle(find_bundle(options.bundle), device=options.device, num_threads=options.threads)
    for note in bundle.notes:
        print(f"pad: {note}", file=sys.stderr)
    return bundle


# -- declaring -------------------------------------------------------------------------------------------------------


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The bundle, which every command but `pad pull` takes."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by pad-export, or OWNER/NAME on the hub")


def add_turn(parser: argparse.ArgumentParser) -> None:
    """What the chat template writes beside the user's message."""
    parser.add_argument("--system", metavar="TEXT", help="the system message, for chat models that take one")
    parser.add_argument(
        "--template-arg",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable of the chat template, such as enable_thinking=false: a JSON value, or else text",
    )


def add_preference(group: argparse._ArgumentGroup) -> None:
    """A preference in words and by weights."""
    group.add_argument("--preference", metavar="TEXT", help='what the user likes, such as "cheerful and concise"')
    group.add_argument(
        "--weight", metavar="NAME=W", action="append", default=[], help="weight of a feature (pad info lists them)"
    )
    group.add_argument("--taste", metavar="FILE", type=Path, help="all weights, as pad taste learned them")


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """A preference and every option of a `GenerationConfig`."""
    defaults = GenerationConfig()
    add_turn(parser)
    guidance = parser.add_argument_group("guidance", "without a preference the base model replies alone")
    add_preference(guidance)
    # An option that was not given leaves no trace, so that the defaults are those of GenerationConfig alone.
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    guidance.add_argument(
        "--beta",
        metavar="B",
        type=float,
        help=f"strength of the preference; 0 is the base alone (default {defaults.beta})",
        **given,
    )
    guidance.add_argument(
        "--top-k",
        metavar="K",
        type=int,
        help=f"candidates that the base proposes for each token (default {defaults.top_k})",
        **given,
    )
    guidance.add_argument(
        "--base-sees-preference",
        action="store_true",
        help="put the preference into the base's prompt too, as the official PAD code does",
        **given,
    )
    guidance.add_argument(
        "--offer-end",
        action="store_true",
        help="let the reply end wherever the preference wants it to, also where the base would go on",
        **given,
    )
    sampling = parser.add_argument_group("generation")
    sampling.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        help=f"most tokens of the reply (default {defaults.max_new_tokens})",
        **given,
    )
    sampling.add_argument(
        "--temperature", metavar="T", type=float, help="0 takes the best token, above 0 samples (default 0)", **given
    )
    sampling.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        help=f"sample from the likeliest candidates of this probability mass (default {defaults.top_p})",
        **given,
    )
    sampling.add_argument(
        "--min-p",
        metavar="P",
        type=float,
        help=f"sample from candidates with this part of the likeliest one's chance (default {defaults.min_p})",
        **given,
    )
    sampling.add_argument("--seed", metavar="S", type=int, help=f"of the sampling (default {defaults.seed})", **given)
    sampling.add_argument(
        "--repetition-penalty",
        metavar="R",
        type=float,
        help=f"makes tokens of the prompt and the reply less likely, above 1 (default {defaults.repetition_penalty})",
        **given,
    )
    sampling.add_argument(
        "--presence-penalty",
        metavar="A",
        type=float,
        help=f"taken off the logits of the reply's tokens (default {defaults.presence_penalty})",
        **given,
    )
    sampling.add_argument(
        "--frequency-penalty",
        metavar="A",
        type=float,
        help=f"taken off for each time that the reply has a token (default {defaults.frequency_penalty})",
        **given,
    )
    sampling.add_argument(
        "--no-repeat-ngram",
        metavar="N",
        type=int,
        help="never write N tokens in a row that were there before; 0 is off (default 0)",
        **given,
    )
    sampling.add_argument(
        "--logit-bias",
        metavar="ID=B",
        dest="logit_bias_pairs",
        action="append",
        default=[],
        help="added to the logit of a token; may be given several times",
    )
    sampling.add_argument(
        "--banned-token-id",
        metavar="ID",
        dest="banned_token_ids",
        type=int,
        action="append",
        help="never write this token; may be given several times",
        **given,
    )
    sampling.add_argument(
        "--json-schema",
        metavar="SCHEMA",
        help="reply with JSON that is valid by this schema, or the one in @FILE",
        **given,
    )
    sampling.add_argument("--regex", metavar="REGEX", help="reply with a text that matches this as a whole", **given)
    sampling.add_argument(
        "--grammar", metavar="LARK", help="reply with a text of this grammar, or the one in @FILE", **given
    )
    sampling.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        help="end the reply before this text, which may be a special token; may be given several times",
        **given,
    )
    sampling.add_argument(
        "--stop-token-id",
        metavar="ID",
        dest="stop_token_ids",
        type=int,
        action="append",
        help="end the reply at this token; may be given several times",
        **given,
    )
    add_machine(parser)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Where the bundle runs."""
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", metavar="DEVICE", default="auto", help=f"{', '.join(DEVICES)} (default auto)")
    machine.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the physical cores)")

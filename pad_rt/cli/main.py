"""The command `pad`: generate, chat, score, info, pull, card, serve, batch and bench."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from pad_rt.cli import batch, card, pull, serve
from pad_rt.config import GenerationConfig
from pad_rt.generator import Generator
from pad_rt.history import History
from pad_rt.hub import find_bundle
from pad_rt.preference import Preference, parse_weight
from pad_rt.result import GenerationResult
from pad_rt.score.reply_scorer import TRAINING_TOP_K
from pad_rt.text.prompt import Prompt
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.command import read_stdin, run_command
from pad_runtime.devices.choice import DEVICES
from pad_runtime.errors import OptionError
from pad_runtime.loaded_bundle import Bundle

_CONSTANTS = {"True": True, "False": False, "None": None}


def main(argv: list[str] | None = None) -> int:
    """Run `pad` with these arguments (None: the process's own) and give its exit code."""
    return run_command("pad", lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    options = _parser(for_bench="bench" in arguments).parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        options.run(options)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    print(f"pad: {message}", file=sys.stderr)


# -- commands -------------------------------------------------------------------------------------------------------


def _generate(options: argparse.Namespace) -> None:
    config, preference = _read_config(options), _read_preference(options)
    if options.explain is not None and preference is None:
        raise OptionError(
            "--explain without a preference", expected="--preference or --weight", hint="the base alone weighs nothing"
        )
    if config.logprobs is not None and not options.json:
        raise OptionError("--logprobs without --json", expected="both")
    prompt = _read_prompt(options)
    generator = _open(options, preference)
    trace = options.explain is not None
    result: GenerationResult | None
    if options.json:
        result = generator.generate(prompt, preference=preference, config=config, trace=trace)
        record = {
            "text": result.text,
            "token_ids": result.token_ids,
            "finish_reason": result.finish_reason,
            "usage": asdict(result.usage),
            "timing": asdict(result.timing),
            "logprobs": [asdict(each) for each in result.logprobs],
            "preference": None if preference is None else asdict(preference),
            "config": asdict(config),
        }
        print(json.dumps(record, ensure_ascii=False))
    else:
        stream = generator.stream(prompt, preference=preference, config=config, trace=trace)
        for piece in stream:
            print(piece, end="", flush=True)
        print(flush=True)
        result = stream.result
        if result and result.finish_reason == "length":
            print(f"pad: {result.describe_cut(config.max_new_tokens)}", file=sys.stderr)
    if trace and result:
        _write_page(options.explain, generator.explain(result, prompt, preference=preference, config=config))


def _write_page(path: Path, page: str) -> None:
    try:
        write_whole(path, page.encode())
    except (OSError, ValueError) as error:  # ValueError: a path without a name
        reason = error.strerror if isinstance(error, OSError) else None
        raise OptionError(
            f"--explain {path} cannot be written: {reason or error}",
            expected="the path of a file, in a folder that exists",
        ) from None


def _chat(options: argparse.Namespace) -> None:
    from pad_rt.cli.chat import Chat

    config, preference = _read_config(options), _read_preference(options)
    Chat(_open(options, preference), config, preference, system=options.system).run()


def _score(options: argparse.Namespace) -> None:
    from pad_rt.cli.score import show

    if options.prompt == options.reply == "-":
        raise OptionError("- for both PROMPT and REPLY", expected="one of them on stdin")
    preference, prompt = _read_preference(options), _read_prompt(options)
    reply = read_stdin("reply").rstrip("\r\n") if options.reply == "-" else options.reply
    template_args = _read_template_args(options.template_arg)
    generator = Generator(_open_bundle(options))
    score = generator.score(
        prompt, reply, preference, ended=options.ended, top_k=options.top_k, template_args=template_args
    )
    show(score, preference, as_json=options.json)


def _info(options: argparse.Namespace) -> None:
    from pad_rt.cli.info import BundleInfo

    info = BundleInfo.read(find_bundle(options.bundle), check=options.check)
    print(json.dumps(info.as_dict(), ensure_ascii=False) if options.json else info.as_text())


# -- options --------------------------------------------------------------------------------------------------------


def _open(options: argparse.Namespace, preference: Preference | None) -> Generator:
    """Open only the graph that will run."""
    generator = Generator(_open_bundle(options))
    generator.open(guided=preference is not None)
    return generator


def _open_bundle(options: argparse.Namespace) -> Bundle:
    bundle = Bundle(find_bundle(options.bundle), device=options.device, num_threads=options.threads)
    for note in bundle.notes:
        print(f"pad: {note}", file=sys.stderr)
    return bundle


def _read_prompt(options: argparse.Namespace) -> Prompt:
    """The user's message, behind the system message if there is one."""
    text = read_stdin().rstrip("\r\n") if options.prompt == "-" else options.prompt
    return text if options.system is None else History(options.system).prompt(text)


def _read_config(options: argparse.Namespace) -> GenerationConfig:
    """The options that were given over the defaults of `GenerationConfig`."""
    names = GenerationConfig.__dataclass_fields__
    given: dict[str, Any] = {name: value for name, value in vars(options).items() if name in names}
    given |= {name: _read_at(given[name]) for name in ("json_schema", "grammar") if name in given}
    return GenerationConfig(
        **given,
        logit_bias=_read_logit_bias(options.logit_bias_pairs),
        template_args=_read_template_args(options.template_arg),
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


def _read_template_args(arguments: list[str]) -> dict[str, Any]:
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


def _read_preference(options: argparse.Namespace) -> Preference | None:
    weights: dict[str, float] = {}
    for argument in options.weight:
        name, weight = parse_weight(argument)
        if name in weights:
            raise OptionError(f"--weight {name} given twice", expected="one weight a feature")
        weights[name] = weight
    if options.preference is None and not weights:
        return None
    return Preference(text=options.preference, weights=weights)


def _parser(*, for_bench: bool) -> argparse.ArgumentParser:
    """The commands and their options; those of `pad bench` where it is asked for, as they import the benchmark."""
    parser = argparse.ArgumentParser(
        prog="pad", description="Personalized generation with a bundle that pad-export wrote.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"pad {version('pad-rt')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="reply to one prompt", allow_abbrev=False)
    generate.set_defaults(run=_generate)
    _add_bundle(generate)
    generate.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads it from stdin")
    _add_guidance(generate)
    generate.add_argument("--json", action="store_true", help="print one JSON object at the end, no stream")
    generate.add_argument(
        "--explain",
        metavar="PAGE",
        type=Path,
        help="also write an HTML page that shows what the preference changed, token by token",
    )
    generate.add_argument(
        "--logprobs",
        metavar="N",
        type=int,
        help="in the JSON object, log-probabilities of each token and of the N likeliest candidates",
        default=argparse.SUPPRESS,
    )

    chat = commands.add_parser(
        "chat", help="talk, one line a turn; /help lists what it understands", allow_abbrev=False
    )
    chat.set_defaults(run=_chat)
    _add_bundle(chat)
    _add_guidance(chat)

    score = commands.add_parser(
        "score", help="say what a reply is worth: how likely it is, and each feature's rating", allow_abbrev=False
    )
    score.set_defaults(run=_score)
    _add_bundle(score)
    score.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads it from stdin")
    score.add_argument("reply", metavar="REPLY", help="what the assistant replied; - reads it from stdin")
    _add_turn(score)
    _add_preference(score.add_argument_group("preference", "without it, every feature of the bundle is rated"))
    scoring = score.add_argument_group("scoring")
    scoring.add_argument("--ended", action="store_true", help="score the end of the turn, too")
    scoring.add_argument(
        "--top-k",
        metavar="K",
        type=int,
        default=TRAINING_TOP_K,
        help=f"tokens that a feature's rating is normalised over (default {TRAINING_TOP_K}, as in training)",
    )
    _add_machine(score)
    score.add_argument("--json", action="store_true", help="print one JSON object")

    info = commands.add_parser("info", help="show what a bundle holds", allow_abbrev=False)
    info.set_defaults(run=_info)
    _add_bundle(info)
    info.add_argument("--check", action="store_true", help="hash every file, the weights too")
    info.add_argument("--json", action="store_true", help="print one JSON object")

    pull.add_parser(commands)
    card.add_parser(commands)
    serve.add_parser(commands)
    batch.add_parser(commands)

    bench = commands.add_parser("bench", help="measure what guidance costs here", allow_abbrev=False)
    if for_bench:
        from pad_rt.cli.bench import add_workload, run

        bench.set_defaults(run=run)
        _add_bundle(bench)
        add_workload(bench)
        _add_machine(bench)
        bench.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by pad-export, or OWNER/NAME on the hub")


def _add_turn(parser: argparse.ArgumentParser) -> None:
    """What the chat template writes beside the user's message."""
    parser.add_argument("--system", metavar="TEXT", help="the system message, for chat models that take one")
    parser.add_argument(
        "--template-arg",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable of the chat template, such as enable_thinking=false: a JSON value, or else text",
    )


def _add_preference(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--preference", metavar="TEXT", help='what the user likes, such as "cheerful and concise"')
    group.add_argument(
        "--weight", metavar="NAME=W", action="append", default=[], help="weight of a feature (pad info lists them)"
    )


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    defaults = GenerationConfig()
    _add_turn(parser)
    guidance = parser.add_argument_group("guidance", "without --preference and --weight the base model replies alone")
    _add_preference(guidance)
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
    _add_machine(parser)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", metavar="DEVICE", default="auto", help=f"{', '.join(DEVICES)} (default auto)")
    machine.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the physical cores)")

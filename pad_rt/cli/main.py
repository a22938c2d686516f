"""The command `pad`: generate, chat, score, info, taste, pull, card, serve, batch and bench."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from pad_rt.cli import batch, card, pull, serve, taste
from pad_rt.cli.options import (
    add_bundle,
    add_guidance,
    add_machine,
    add_preference,
    add_turn,
    open_bundle,
    read_config,
    read_preference,
    read_prompt,
    read_template_args,
    with_taste,
)
from pad_rt.generator import Generator
from pad_rt.hub import find_bundle
from pad_rt.preference import Preference
from pad_rt.result import GenerationResult
from pad_rt.score.reply_scorer import TRAINING_TOP_K
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.command import read_stdin, run_command
from pad_runtime.errors import OptionError


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
    config, preference = read_config(options), read_preference(options)
    if options.explain is not None and preference is None and options.taste is None:
        raise OptionError(
            "--explain without a preference",
            expected="--preference, --weight or --taste",
            hint="the base alone weighs nothing",
        )
    if config.logprobs is not None and not options.json:
        raise OptionError("--logprobs without --json", expected="both")
    prompt = read_prompt(options)
    generator, preference = _open(options, preference)
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

    config, preference = read_config(options), read_preference(options)
    generator, preference = _open(options, preference)
    Chat(generator, config, preference, system=options.system).run()


def _score(options: argparse.Namespace) -> None:
    from pad_rt.cli.score import show

    if options.prompt == options.reply == "-":
        raise OptionError("- for both PROMPT and REPLY", expected="one of them on stdin")
    preference, prompt = read_preference(options), read_prompt(options)
    reply = read_stdin("reply").rstrip("\r\n") if options.reply == "-" else options.reply
    template_args = read_template_args(options.template_arg)
    generator = Generator(open_bundle(options))
    preference = with_taste(preference, options, generator)
    score = generator.score(
        prompt, reply, preference, ended=options.ended, top_k=options.top_k, template_args=template_args
    )
    show(score, preference, as_json=options.json)


def _info(options: argparse.Namespace) -> None:
    from pad_rt.cli.info import BundleInfo

    info = BundleInfo.read(find_bundle(options.bundle), check=options.check)
    print(json.dumps(info.as_dict(), ensure_ascii=False) if options.json else info.as_text())


def _open(options: argparse.Namespace, preference: Preference | None) -> tuple[Generator, Preference | None]:
    """Open only the graph that will run; a taste becomes the preference's weights."""
    generator = Generator(open_bundle(options))
    preference = with_taste(preference, options, generator)
    generator.open(guided=preference is not None)
    return generator, preference


def _parser(*, for_bench: bool) -> argparse.ArgumentParser:
    """The commands and their options; those of `pad bench` where it is asked for, as they import the benchmark."""
    parser = argparse.ArgumentParser(
        prog="pad", description="Personalized generation with a bundle that pad-export wrote.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"pad {version('pad-rt')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="reply to one prompt", allow_abbrev=False)
    generate.set_defaults(run=_generate)
    add_bundle(generate)
    generate.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads it from stdin")
    add_guidance(generate)
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
    add_bundle(chat)
    add_guidance(chat)

    score = commands.add_parser(
        "score", help="say what a reply is worth: how likely it is, and each feature's rating", allow_abbrev=False
    )
    score.set_defaults(run=_score)
    add_bundle(score)
    score.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads it from stdin")
    score.add_argument("reply", metavar="REPLY", help="what the assistant replied; - reads it from stdin")
    add_turn(score)
    add_preference(score.add_argument_group("preference", "without it, every feature of the bundle is rated"))
    scoring = score.add_argument_group("scoring")
    scoring.add_argument("--ended", action="store_true", help="score the end of the turn, too")
    scoring.add_argument(
        "--top-k",
        metavar="K",
        type=int,
        default=TRAINING_TOP_K,
        help=f"tokens that a feature's rating is normalised over (default {TRAINING_TOP_K}, as in training)",
    )
    add_machine(score)
    score.add_argument("--json", action="store_true", help="print one JSON object")

    info = commands.add_parser("info", help="show what a bundle holds", allow_abbrev=False)
    info.set_defaults(run=_info)
    add_bundle(info)
    info.add_argument("--check", action="store_true", help="hash every file, the weights too")
    info.add_argument("--json", action="store_true", help="print one JSON object")

    taste.add_parser(commands)
    pull.add_parser(commands)
    card.add_parser(commands)
    serve.add_parser(commands)
    batch.add_parser(commands)

    bench = commands.add_parser("bench", help="measure what guidance costs here", allow_abbrev=False)
    if for_bench:
        from pad_rt.cli.bench import add_workload, run

        bench.set_defaults(run=run)
        add_bundle(bench)
        add_workload(bench)
        add_machine(bench)
        bench.add_argument("--json", action="store_true", help="print one JSON object")
    return parser

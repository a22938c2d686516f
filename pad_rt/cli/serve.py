"""`pad serve`: its options and its run. The web server is imported once it runs."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from pad_rt.serve.settings import ServeSettings, flags
from pad_runtime.command import with_extra

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_PACKAGES = ("starlette", "uvicorn", "prometheus_client", "sqlalchemy")


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options, which are read and checked by `ServeSettings`."""
    defaults = ServeSettings()
    parser = commands.add_parser(
        "serve",
        help="serve bundles over HTTP: OpenAI's API, and a page for a browser",
        description="Every option also has an environment variable, such as PAD_MAX_WAITING for --max-waiting.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "bundles", metavar="BUNDLE", nargs="+", help="folder written by pad-export, or OWNER/NAME on the hub"
    )
    for name, flag in flags().items():
        default = getattr(defaults, name)
        known = f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
        options: dict[str, Any] = {"action": "store_true"} if flag.is_switch else {"metavar": flag.metavar}
        if flag.is_list:
            options["action"] = "append"
        parser.add_argument(
            f"--{flag.name}",
            dest=name,
            default=argparse.SUPPRESS,
            help=flag.help + ("" if default in (None, (), False) else known),
            **options,
        )


def run(options: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    given = {name: value for name, value in vars(options).items() if name in flags()}
    settings = ServeSettings.read(options.bundles, given, os.environ)
    with_extra("serve", _PACKAGES, lambda: _serve(settings))


def _serve(settings: ServeSettings) -> None:
    from pad_rt.serve.server import run as run_server

    run_server(settings, report=_report, warn=_warn)


def _report(line: str) -> None:
    print(line, flush=True)


def _warn(line: str) -> None:
    print(f"pad: {line}", file=sys.stderr)

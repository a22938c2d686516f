"""`pad pull`: a bundle from the Hugging Face hub, ahead of its first use or into a folder."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from pad_rt.hub import pull_bundle
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import parse_manifest
from pad_runtime.errors import OptionError
from pad_runtime.hub import Repository


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    pull = commands.add_parser("pull", help="fetch a bundle from the Hugging Face hub", allow_abbrev=False)
    pull.set_defaults(run=run)
    pull.add_argument("name", metavar="OWNER/NAME", help="repository of the bundle")
    pull.add_argument("--revision", metavar="REVISION", help="branch, tag or commit (default main)")
    pull.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, help="folder to write (default: the hub's cache, for OWNER/NAME)"
    )


def run(options: argparse.Namespace) -> None:
    """Fetch and check the bundle, and say where it is and how to use it."""
    repository = Repository.parse(options.name)
    if repository is None or repository.file:
        raise OptionError(f"{options.name} is no name of a repository", expected="OWNER/NAME or OWNER/NAME@REVISION")
    if options.revision is not None:
        if repository.revision is not None:
            raise OptionError(f"--revision {options.revision} and {repository}", expected="one of them")
        repository = replace(repository, revision=options.revision)
    folder = pull_bundle(repository, options.output)
    manifest = parse_manifest(folder / contract.MANIFEST_FILE)
    size = sum(file.size for file in manifest.files.values()) / 2**20
    print(f"{repository} ({size:,.1f} MiB, every file hashed): {folder}")
    bundle, persrm = shlex.quote(str(options.output or repository)), manifest.persrms[0]
    wish = "--preference 'cheerful and concise'" if persrm.takes_text else f"--weight {persrm.features[0]}=1"
    print(f"try: pad generate {bundle} 'How do I boil an egg?' {wish}")

"""The Dockerfile and the compose file name what is there: no test builds them."""

from __future__ import annotations

import re
import shlex
import tomllib
from argparse import ArgumentParser
from pathlib import Path

import yaml

from pad_rt.cli import serve
from pad_rt.serve.settings import flags

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VARIABLES = {flag.variable for flag in flags().values()}


def test_the_image_is_built_of_what_the_package_is_made_of() -> None:
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.M) for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    packages = PACKAGE["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {name.partition("/")[0] for name in packages} <= set(copied)
    assert set(PACKAGE["project"]["license-files"]) | {PACKAGE["project"]["readme"]} <= set(copied)
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in copied} <= set(sent)


def test_the_image_has_the_extras_and_variables_that_it_names() -> None:
    (extras,) = re.findall(r"\.whl\)\[(.*?)\]", DOCKERFILE)
    assert set(extras.split(",")) <= set(PACKAGE["project"]["optional-dependencies"])
    (variables,) = re.findall(r"^ENV (.*)", DOCKERFILE, re.M)
    assert {each.partition("=")[0] for each in shlex.split(variables)} <= VARIABLES


def test_the_compose_file_starts_a_command_that_is_there() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    service = compose["services"]["pad"]
    assert set(service["environment"]) <= VARIABLES
    assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    parser = ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    options = parser.parse_args(service["command"])
    assert options.bundles == ["/bundle"]
    assert any(volume.endswith(":/bundle:ro") for volume in service["volumes"])
    assert int(service["stop_grace_period"].removesuffix("s")) > float(service["environment"]["PAD_DRAIN_TIMEOUT"])

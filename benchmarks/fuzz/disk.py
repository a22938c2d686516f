"""Exports on disks that fill up, exports that are killed, and two exports of one target at once.

Each export is a fork of the process, which has not imported onnxruntime: what it was forked from would hang.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz.inputs import LIMITS, Inputs
from benchmarks.fuzz.targets import Target, Tokens
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_runtime.bundle.manifest import read_manifest, verify_files
from pad_runtime.errors import PadError

_OLD, _NEW = 100, 101  # max_length of the bundle that is replaced, and of the one that replaces it
_LONGEST = 0.6  # seconds after which an export is killed at the latest; it takes less than that


def make_disk_targets(inputs: Inputs) -> list[Target]:
    """All of them, in the order of the table."""
    return [
        Target(f"{what}, {'replaced' if there else 'new'}", True, _place(inputs, there), _note, _use(act, inputs))
        for what, act in (("full disk", _full), ("export killed", _killed), ("two exports at once", _two))
        for there in (False, True)
    ]


def _place(inputs: Inputs, there: bool) -> Callable[[Path], Path]:
    """A folder for the bundle, with an old one in it or without."""

    def place(scratch: Path) -> Path:
        home = scratch / "home"
        home.mkdir()
        if there:
            _export(inputs, home / "bundle", _OLD)
        return home

    return place


def _note(home: Path, rng: random.Random | None, index: int) -> str:
    """What is drawn for this case is left beside the folder for `_use`."""
    draw = rng.random() if rng else 1.0
    (home.parent / "draw").write_text(json.dumps([draw, index]), encoding="ascii")
    return f"draw {draw:.4f}"


def _use(act: Callable[[Inputs, Path, float], None], inputs: Inputs) -> Callable[[Path], Tokens]:
    def use(home: Path) -> Tokens:
        draw, index = json.loads((home.parent / "draw").read_text(encoding="ascii"))
        before = _state(home)
        try:
            act(inputs, home, draw if index >= 0 else 2.0)
        except PadError:
            _check(_state(home) == before, f"a refused export left {_names(home)}")
            raise
        _check(_state(home) in (before, _NEW) and (index >= 0 or _state(home) == _NEW), f"{_state(home)} is there")
        if _fork(lambda: _export(inputs, home / "next", _NEW)) != 0:
            raise AssertionError("the next export failed")
        names = ["bundle", "next"] if _state(home) else ["next"]
        _check(_names(home) == names, f"{_names(home)} is left after the next export")
        return []

    return use


def _full(inputs: Inputs, home: Path, draw: float) -> None:
    """No file may grow beyond a part of the bundle's largest."""
    largest = max(path.stat().st_size for path in inputs.bundle.rglob("*") if path.is_file())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(draw * 1.1 * largest), hard))
    try:
        _export(inputs, home / "bundle", _NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _killed(inputs: Inputs, home: Path, draw: float) -> None:
    child = _start(lambda: _export(inputs, home / "bundle", _NEW))
    if draw <= 1:
        time.sleep(draw * _LONGEST)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _two(inputs: Inputs, home: Path, draw: float) -> None:
    """At once, or one a little later; whichever is refused is refused in a line."""
    children = [_start(lambda: _export(inputs, home / "bundle", _NEW))]
    time.sleep(draw % 1 * _LONGEST)
    children.append(_start(lambda: _export(inputs, home / "bundle", _NEW)))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    _check(sorted(codes) in ([0, 0], [0, 2]), f"exit codes {codes}")


def _export(inputs: Inputs, output: Path, max_length: int) -> None:
    export_bundle(
        inputs.base,
        output,
        persrms=inputs.persrms,
        options=ExportOptions(verify=False, **LIMITS | {"max_length": max_length}),
    )


def _start(act: Callable[[], Any]) -> int:
    """Fork, and exit with 0, 2 for a `PadError`, or 1."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        act()
        code = 0
    except PadError:
        code = 2
    finally:
        os._exit(code)


def _fork(act: Callable[[], Any]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_start(act), 0)[1])


def _state(home: Path) -> int | None:
    """max_length of the bundle that is there, which must be whole; None where there is none."""
    bundle = home / "bundle"
    if not bundle.exists():
        return None
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    _check(found == {*manifest.files, "pad.json"}, f"{sorted(found)} is in the bundle")
    return manifest.max_length


def _names(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir())


def _check(right: bool, what: str) -> None:
    if not right:
        raise AssertionError(what)

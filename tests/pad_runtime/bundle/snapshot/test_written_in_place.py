"""Files of a loaded bundle that are written to: mapped weights change under the graph that reads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from pad_rt import GenerationConfig, Generator
from pad_runtime.errors import BundleError
from tests.support import tiny_bundles
from tests.support.error_checks import refused
from tests.support.guided_steps import ask, open_slots

Say = Callable[..., tuple[int, ...]]


def overwrite(bundle: Path, other: Path) -> None:
    """As cp does it."""
    shutil.copyfile(other / "weights.bin", bundle / "weights.bin")


def overwrite_and_set_times(bundle: Path, other: Path) -> None:
    """As cp --preserve does it of files of the same age."""
    before = (bundle / "weights.bin").stat()
    overwrite(bundle, other)
    os.utime(bundle / "weights.bin", ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(bundle: Path, other: Path) -> None:
    """To read a mapped page beyond the end would kill the process."""
    os.truncate(bundle / "weights.bin", 100)


def change_a_byte(bundle: Path, other: Path) -> None:
    with (bundle / "weights.bin").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")


CHANGES = (overwrite, overwrite_and_set_times, truncate, change_a_byte)


def stream(generator: Generator) -> Iterator[str]:
    return generator.stream("hi", preference="cheerful", config=GenerationConfig(max_new_tokens=60, beta=0.0))


@pytest.mark.parametrize("change", CHANGES)
def test_no_token_of_other_weights(pair: Any, bundle: Path, change: Callable[[Path, Path], None], say: Say) -> None:
    """Between two steps, at the next prompt, and where a session is made of the file."""
    generator = tiny_bundles.load(bundle)
    assert say(generator, "guided") == pair.tokens["guided"]
    started = stream(generator)
    next(started)
    generator._engine.run(lambda _: change(bundle, pair.second))
    for go_on in (lambda: list(started), lambda: say(generator, "guided"), lambda: say(generator, "base")):
        with refused(BundleError, given=f"{bundle / 'weights.bin'} was changed after it was loaded", hint="load the"):
            go_on()


def test_a_change_while_a_step_runs(pair: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What that step chose is not given out."""
    real, runs = onnxruntime.InferenceSession.run_with_iobinding, []

    def run(*arguments: Any) -> None:
        real(*arguments)
        runs.append(arguments)
        if len(runs) == 4:
            overwrite(bundle, pair.second)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", run)
    opened = tiny_bundles.open_bundle(bundle)
    decoder, given = opened.decoder(), list[list[int]]()
    slots = open_slots(decoder, ask(opened.manifest, 0))
    with refused(BundleError, given="weights.bin was changed after it was loaded", hint="load the bundle again"):
        for _ in range(9):
            given.append(list(decoder.step(slots).ids))
    assert len(given) == 2, "the first run reads the prompt"


def test_what_leaves_the_content_alone(pair: Any, bundle: Path, say: Say) -> None:
    """Other rights, another name, one more link: the times of the file change, and its content does not."""
    generator = tiny_bundles.load(bundle)
    weights = bundle / "weights.bin"
    weights.chmod(0o600)
    assert say(generator, "guided") == pair.tokens["guided"]
    os.link(weights, bundle / "link")
    assert say(generator, "base") == pair.tokens["base"]
    (bundle / "link").unlink()
    assert say(generator, "guided") == pair.tokens["guided"]


@pytest.mark.parametrize(
    ("file", "request_name"),
    [("adapters/two.safetensors", "another adapter"), ("heads/one.safetensors", "guided"), ("base.onnx", "base")],
)
def test_files_of_the_first_use(pair: Any, bundle: Path, say: Say, file: str, request_name: str) -> None:
    """They are read when a request calls on them, and by then they were written to."""
    generator = tiny_bundles.load(bundle)
    data = bytearray((bundle / file).read_bytes())
    data[-1] ^= 64
    (bundle / file).write_bytes(data)
    with refused(BundleError, given=f"{bundle / file} was changed after it was loaded", hint="load the bundle again"):
        say(generator, request_name)

"""What happens to the folder of a loaded bundle: replaced, moved, deleted, linked, or the process goes elsewhere."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pad_rt import Generator
from pad_runtime.errors import BundleError, PadError
from pad_runtime.loaded_bundle import Bundle
from tests.support import tiny_bundles
from tests.support.error_checks import refused

Say = Callable[..., tuple[int, ...]]


def exchange(bundle: Path, other: Path) -> None:
    """As an export does it: the new folder is made beside and takes the name; the old one is deleted."""
    shutil.copytree(other, bundle.with_name("new"))
    bundle.rename(bundle.with_name("old"))
    bundle.with_name("new").rename(bundle)
    shutil.rmtree(bundle.with_name("old"))


def test_a_replaced_bundle_gives_its_own_tokens_or_one_error(pair: Any, bundle: Path, say: Say) -> None:
    """The base's session and an adapter are opened at first use: that comes after the exchange."""
    generator = tiny_bundles.load(bundle)
    exchange(bundle, pair.second)
    assert say(generator, "guided") == pair.tokens["guided"]
    assert say(generator, "another adapter") == pair.tokens["another adapter"], "read from what is held open"
    with refused(
        BundleError,
        given=f"{bundle / 'weights.bin'} was replaced or deleted after it was loaded",
        hint="load the bundle",
    ):
        say(generator, "base")
    with refused(BundleError, given="was replaced or deleted after it was loaded", hint="load the bundle again"):
        next(generator.stream("hi", config={"max_new_tokens": 40}))
    assert say(tiny_bundles.load(bundle), "base") == pair.others["base"]


def test_what_was_used_before_goes_on(pair: Any, bundle: Path, say: Say) -> None:
    generator = tiny_bundles.load(bundle)
    before = {name: say(generator, name) for name in pair.tokens}
    exchange(bundle, pair.second)
    assert before == pair.tokens == {name: say(generator, name) for name in pair.tokens}
    shutil.rmtree(bundle)
    assert say(generator, "base") == pair.tokens["base"]


def test_a_relative_path_is_of_the_folder_at_loading(
    pair: Any, bundle: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the folder where the process goes there is another bundle of that name."""
    elsewhere = bundle.parent / "elsewhere"
    shutil.copytree(pair.second, elsewhere / "bundle")
    monkeypatch.chdir(bundle.parent)
    generator = Generator.load("bundle", device="cpu", num_threads=1)
    monkeypatch.chdir(elsewhere)
    assert {name: say(generator, name) for name in pair.tokens} == pair.tokens


def test_a_link_to_a_bundle_may_be_turned(pair: Any, bundle: Path, say: Say) -> None:
    link = bundle.with_name("current")
    link.symlink_to(bundle)
    generator = tiny_bundles.load(link)
    link.unlink()
    link.symlink_to(pair.second)
    assert {name: say(generator, name) for name in pair.tokens} == pair.tokens


@pytest.mark.parametrize("name", ["weights.bin", "a1b2c3"])
def test_weights_behind_a_link_to_another_disk(pair: Any, bundle: Path, say: Say, name: str) -> None:
    """Under its own name, and under another: as a cache of downloads names files."""
    disk = bundle.with_name("disk")
    disk.mkdir()
    (bundle / "weights.bin").rename(disk / name)
    (bundle / "weights.bin").symlink_to(disk / name)
    generator = tiny_bundles.load(bundle)
    assert {name: say(generator, name) for name in pair.tokens} == pair.tokens


def test_all_files_behind_links(pair: Any, bundle: Path, say: Say, tmp_path: Path) -> None:
    for number, path in enumerate([path for path in bundle.rglob("*") if path.is_file()]):
        path.rename(tmp_path / f"blob{number}")
        path.symlink_to(tmp_path / f"blob{number}")
    generator = tiny_bundles.load(bundle)
    assert {name: say(generator, name) for name in pair.tokens} == pair.tokens


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_generator_is_not_copied(pair: Any, make: Callable[[object], object]) -> None:
    generator = tiny_bundles.load(pair.first)
    for value, name in ((generator, "a Generator"), (generator._bundle, "a Bundle"), ([generator], "a Generator")):
        if isinstance(value, list) and make is copy.copy:
            continue  # a copy of the list alone
        with refused(PadError, given=f"{name} cannot be pickled or copied", hint="load the bundle by its path"):
            make(value)


def test_nothing_stays_open(bundle: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("told by /proc/self/fd")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - links that lead nowhere are counted
    opened = Bundle(bundle, num_threads=1)
    during = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    del opened
    assert len(os.listdir("/proc/self/fd")) == before < during  # noqa: PTH208

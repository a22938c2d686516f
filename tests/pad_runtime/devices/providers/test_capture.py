"""Captured steps, on a device that is simulated.

The simulated device is the CPU under another name: buffers lie in the simulated device's memory, steps carry graph ids
as captured ones do, and what a replay would really read is checked: the addresses, and the values of host inputs, of
the first run with that id.
"""

from __future__ import annotations

import gc
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pad_rt import Generator, Preference
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.devices.ort import sessions
from pad_runtime.devices.ort.execution_provider import EXECUTION_PROVIDERS
from pad_runtime.loaded_bundle import Bundle
from tests.support import fake_onnxruntime, tiny_bundles, tiny_models
from tests.support.fake_cuda import FakeRuntime
from tests.support.fake_onnxruntime import Log
from tests.support.family_requests import BOTH, CONFIG, PROMPTS


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[tuple[int, ...]]:
    """What the CPU says as it is."""
    results = tiny_bundles.load(bundle).generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    return [result.token_ids for result in results]


@pytest.fixture
def device(expected: object, monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> Log:
    """A device that takes float32 too, in which the CPU says the same however it is started."""
    on_cuda = replace(EXECUTION_PROVIDERS["cuda"], float_types=("float32",))
    monkeypatch.setitem(EXECUTION_PROVIDERS, "cuda", on_cuda)
    return fake_onnxruntime.install(monkeypatch.setattr, runtime)


def test_a_captured_step_says_what_an_ordinary_one_says(
    bundle: Path, expected: list[tuple[int, ...]], device: Log, runtime: FakeRuntime
) -> None:
    generator = Generator.load(bundle, device="cuda", num_threads=1)
    results = generator.generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    assert [result.token_ids for result in results] == expected
    assert device.runs[:2] == [-1, -1], "prompts are not captured"
    decode = device.runs[2:]
    assert len(set(decode)) == 2
    assert all(one != other for one, other in itertools.pairwise(decode)), "bindings take turns"
    assert len(decode) == CONFIG.max_new_tokens + 1, "one step is ahead of what was asked for"
    copies = runtime.calls[-2 * len(decode) + 1 : -1]  # the last call waits for the step ahead, which is discarded
    assert copies == ["copy", "wait"] * (len(decode) - 1), "one small copy a token and nothing else"


def test_without_capture_no_run_has_a_graph(bundle: Path, expected: list[tuple[int, ...]], device: Log) -> None:
    generator = Generator(Bundle(bundle, device="cuda", num_threads=1, capture=False))
    results = generator.generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    assert [result.token_ids for result in results] == expected
    assert set(device.runs) == {None}


def test_memory_is_given_back(bundle: Path, device: Log, runtime: FakeRuntime) -> None:
    generator = Generator.load(bundle, device="cuda", num_threads=1)
    generator.generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    assert runtime.taken > 2**16
    del generator
    gc.collect()
    assert runtime.taken == 0


def test_what_a_capture_has_read_for_good_makes_a_new_one(bundle: Path, device: Log) -> None:
    loaded = [Generator.load(bundle, device="cuda", num_threads=1, keep_mib=0)]

    def graphs(**changes: Any) -> set[int | None]:
        device.runs.clear()
        preference = changes.pop("preference", BOTH)
        loaded[0].generate(PROMPTS[0], preference=preference, config=replace(CONFIG, **changes))
        return set(device.runs) - {-1}

    first = graphs()
    assert graphs() == first
    assert graphs(beta=0.5) == first, "coefficients live on the device"
    assert not graphs(top_k=5) & first, "k is read on the host"
    assert graphs() == first, "the captures of other requests are kept for a while"
    again = graphs(top_k=5)
    assert not graphs(preference=Preference(weights={"two": 1.0}), top_k=5) & again, "another PersRM is other buffers"
    sampled = graphs(temperature=0.7, top_k=5)
    assert graphs(temperature=0.9, top_k=5, seed=3, max_new_tokens=CONFIG.max_new_tokens + 1) == sampled
    assert not device.released
    loaded.clear()
    gc.collect()
    assert set(device.released) >= first | again | sampled, "captures go with their runs"


def test_another_strength_needs_no_other_capture(models: Path, device: Log, tmp_path: Path) -> None:
    """Feature heads are mixed anew for every person, into the same buffers."""
    shutil.copytree(models / "one", tmp_path / "headed")
    tiny_models.make_head(tmp_path / "headed", 84, d=2, seed=6)
    bundle = tiny_bundles.export(tmp_path / "bundle", models / "base", [tmp_path / "headed"])
    first, second = read_manifest(bundle).persrms[0].features
    on_cuda = Generator.load(bundle, device="cuda", num_threads=1, keep_mib=0)
    graphs, replies = [], set()
    for weights in ({first: 1.0, second: 1.0}, {first: -8.0, second: 0.25}, {first: 1.0, second: 1.0}):
        device.runs.clear()
        wanted = {"preference": Preference(weights=weights), "config": CONFIG}
        replies.add(on_cuda.generate(PROMPTS[0], **wanted).token_ids)
        graphs.append(set(device.runs) - {-1})
    assert graphs[0] == graphs[1] == graphs[2]
    assert len(replies) == 2


def test_mixed_and_unmixed_heads_do_not_write_over_each_other(models: Path, tmp_path: Path) -> None:
    """As many people as features are mixed, more are not: the same step serves both, in turn."""
    shutil.copytree(models / "one", tmp_path / "headed")
    tiny_models.make_head(tmp_path / "headed", 84, d=2, seed=6)
    bundle = tiny_bundles.export(tmp_path / "bundle", models / "base", [tmp_path / "headed"])
    first, second = read_manifest(bundle).persrms[0].features
    people = [Preference(weights={first: one, second: other}) for one, other in ((8, -8), (-8, 4), (2, 9))]

    def replies(generator: Generator, wanted: list[Preference]) -> list[tuple[int, ...]]:
        results = generator.generate_batch([PROMPTS[0]] * 3, preferences=wanted, config=CONFIG)
        return [result.token_ids for result in results]

    two, three = [people[0], people[1], people[0]], people
    one = tiny_bundles.load(bundle)
    for wanted in (two, three, two, three, [people[1]] * 3, three):
        assert replies(one, wanted) == replies(tiny_bundles.load(bundle), wanted)
    assert len(set(replies(one, three))) == 3


def test_two_generators_do_not_share_a_capture(bundle: Path, device: Log) -> None:
    one, other = (Generator.load(bundle, device="cuda", num_threads=1) for _ in range(2))
    texts = []
    for generator in (one, other, one):
        texts.append(generator.generate(PROMPTS[0], preference=BOTH, config=CONFIG).token_ids)
    assert texts[0] == texts[1] == texts[2]


def test_the_simulation_notices_a_stale_capture(bundle: Path, device: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a provider that gives the same graph ids to new buffers."""
    monkeypatch.setattr(sessions, "_graph_ids", itertools.cycle([1, 2]))
    generator = Generator.load(bundle, device="cuda", num_threads=1)
    generator.generate(PROMPTS[0], preference=BOTH, config=CONFIG)
    with pytest.raises(AssertionError, match="something else"):
        generator.generate(PROMPTS[0], preference=BOTH, config=replace(CONFIG, top_k=5))

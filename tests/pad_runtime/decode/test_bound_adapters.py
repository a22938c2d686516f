"""LoRA factors and feature heads: on the device once for all runs that take them, and no more of them than count."""

from __future__ import annotations

from typing import Any

import pytest
from onnxruntime.capi import onnxruntime_inference_collection as ort_python

from pad_runtime.bundle import contract
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward, plan_rows
from tests.support import tiny_bundles, tiny_models
from tests.support.guided_steps import Asked, run

PLAIN, MANY = 0, 1  # PersRMs: without a head, and with three features
BASE, REWARD = (5, 17, 300), (9, 8, 7, 6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("adapters")
    tiny_models.make_base(folder / "base", "llama", seed=41)
    for seed, name in enumerate(("plain", "many")):
        tiny_models.make_adapter(folder / name, folder / "base", seed=seed)
    tiny_models.make_head(folder / "many", 84, d=3, seed=46)
    persrms = [folder / "plain", folder / "many"]
    return tiny_bundles.open_bundle(tiny_bundles.export(folder / "bundle", folder / "base", persrms, max_top_k=64))


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
    """Address and shape of every input that is bound, in order, by name."""
    found: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    real = ort_python.IOBinding.bind_input

    def noting(self: Any, name: str, device: str, number: int, kind: int, shape: tuple[int, ...], address: int) -> None:
        found.setdefault(name, []).append((address, tuple(shape)))
        real(self, name, device, number, kind, shape, address)

    monkeypatch.setattr(ort_python.IOBinding, "bind_input", noting)
    return found


def ask(bundle: Bundle, persrm: int | None, *weights: float, **options: Any) -> Asked:
    rewards = [] if persrm is None else [Reward(persrm, weights, 1.0, REWARD)]
    return Asked.of(plan_rows(bundle.manifest, BASE, rewards, 1.0), **options)


def test_all_runs_of_a_preference_take_the_same_heads(bundle: Bundle, bound: dict[str, Any]) -> None:
    decoder = bundle.decoder()
    for top_k in range(4, 12):
        run(decoder, [ask(bundle, MANY, 0.5, -1.0, 2.0, top_k=top_k)], 3)
    assert len(set(bound[contract.TOP_K])) > 8, "each has runs of its own"
    for name in (contract.FEATURE_HEADS, contract.FEATURE_BIASES):
        assert len(bound[name]) == len(bound[contract.TOP_K])
        assert len(set(bound[name])) == 2, (
            "the one of all steps, and one for prompts that are read, whose weights are 0"
        )
    run(decoder, [ask(bundle, MANY, 0.5, -1.0, 2.5)], 3)
    assert len(set(bound[contract.FEATURE_HEADS])) == 3


def test_where_no_reading_has_weights_there_is_one_head(bundle: Bundle, bound: dict[str, Any]) -> None:
    """An input is never empty: of a PersRM without a head, of a plain row that is traced, where a prompt is read."""
    run(bundle.decoder(), [ask(bundle, PLAIN, 1.0)], 3)
    decoder = bundle.decoder()
    decoder.step([ask(bundle, None).open(decoder)], trace=True)
    slot = ask(bundle, MANY, 0.5, -1.0, 2.0).open(decoder)
    decoder.read(slot, {0: [1], 1: [1]})
    assert {shape[0] for _, shape in bound[contract.FEATURE_HEADS]} == {1}


def test_a_plain_row_takes_the_factors_that_are_there(bundle: Bundle, bound: dict[str, Any]) -> None:
    """Those of the first PersRM, whose gates are shut: no other set of the same is made."""
    decoder = bundle.decoder()
    run(decoder, [ask(bundle, PLAIN, 1.0)], 2)
    factors = {name: places for name, places in bound.items() if name.startswith("lora.")}
    before = {name: set(places) for name, places in factors.items()}
    decoder.step([ask(bundle, None).open(decoder)], trace=True)
    assert {name: set(places) for name, places in factors.items()} == before
    assert all(len(places) == 1 for places in before.values())

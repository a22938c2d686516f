"""Adapters and heads that are whole by the manifest, and wrong: made by who can also recompute hashes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pad_rt import EncodedPrompt, GenerationConfig, Preference
from pad_runtime.errors import BundleError
from tests.support import tiny_bundles, tiny_models
from tests.support.error_checks import edit_manifest, refused

Tensors = dict[str, Any]
A, B = "lora.1.qkv.a", "lora.1.qkv.b"
ADAPTER, HEAD = "adapters/kind.safetensors", "heads/kind.safetensors"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter-file")
    tiny_models.make_base(folder / "base", "llama", seed=3)
    tiny_models.make_adapter(folder / "kind", folder / "base", seed=4)
    tiny_models.make_head(folder / "kind", 84, d=2, seed=5)
    return tiny_bundles.export(folder / "bundle", folder / "base", [folder / "kind"])


@pytest.fixture
def whole(bundle: Path) -> Any:
    """The bundle, and its files as they were are put back afterwards."""
    kept = {name: (bundle / name).read_bytes() for name in (ADAPTER, HEAD, "pad.json")}
    yield bundle
    for name, content in kept.items():
        (bundle / name).write_bytes(content)


def generate(bundle: Path) -> tuple[int, ...]:
    prompt, config = EncodedPrompt([5, 6], [5, 6]), GenerationConfig(max_new_tokens=3)
    preference = Preference(weights={"kind-0": 1.0, "kind-1": 0.5})
    return tiny_bundles.load(bundle).generate(prompt, preference=preference, config=config).token_ids


def of(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def filled(value: float) -> Callable[[Any], Any]:
    def fill(array: Any) -> Any:
        array = array.copy()
        array[-1, -1] = value
        return array

    return fill


def test_the_control(whole: Path) -> None:
    """A valid file that was written anew is taken."""
    expected = generate(whole)
    for name in (ADAPTER, HEAD):
        save_file(load_file(whole / name), whole / name)
    edit_manifest(whole, rehash=True)
    assert generate(whole) == expected


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (ADAPTER, without(A), f"{ADAPTER} lacks the tensor '{A}'"),
        (ADAPTER, lambda tensors: {**tensors, "\n\x1b": tensors[A]}, f"{ADAPTER} has the tensor '\\n\\x1b'"),
        (ADAPTER, lambda _: {}, f"{ADAPTER} lacks the tensor 'lora.0.down.a'"),
        (ADAPTER, of(A, lambda array: array[:-1].copy()), f"{A} in "),
        (ADAPTER, of(B, lambda array: array[:, :-1].copy()), f"{B} in "),
        (ADAPTER, of(A, lambda array: array[:, :-1].copy()), "qkv."),
        (ADAPTER, of(A, lambda array: array[:, :0].copy()), f"{A} in "),
        (ADAPTER, of(A, lambda array: array[None]), f"{A} in "),
        (ADAPTER, of(A, lambda array: array.astype(np.int32)), "is I32"),
        (ADAPTER, of(A, lambda array: array.astype(bool)), "is BOOL"),
        (ADAPTER, of(A, lambda array: array.astype(np.float64)), "is F64"),
        (ADAPTER, of(A, filled(float("nan"))), "holds what is no finite float32"),
        (ADAPTER, of(B, filled(float("inf"))), "holds what is no finite float32"),
        (HEAD, without("biases"), f"{HEAD} lacks the tensor 'biases'"),
        (HEAD, of("heads", lambda array: array[:1].copy()), "heads in "),
        (HEAD, of("heads", lambda array: array[:, :-1].copy()), "heads in "),
        (HEAD, of("biases", lambda array: array[:, 0].copy()), "biases in "),
        (HEAD, of("biases", lambda array: array.astype(np.uint8)), "is U8"),
        (HEAD, of("heads", filled(float("nan"))), "holds what is no finite float32"),
    ],
)
def test_tensors_that_are_not_the_trunks(
    whole: Path, file: str, change: Callable[[Tensors], Tensors], words: str
) -> None:
    save_file(change(load_file(whole / file)), whole / file)
    edit_manifest(whole, rehash=True)
    with refused(BundleError, given=words, hint="export it again"):
        generate(whole)


def header(value: Any, data: bytes = b"") -> bytes:
    text = json.dumps(value).encode() if not isinstance(value, bytes) else value
    return struct.pack("<Q", len(text)) + text + data


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize("file", [ADAPTER, HEAD])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8,
        struct.pack("<Q", 2**40) + b"{}",
        header(b"\xff\xfe"),
        header(b"[" * 5000),
        header([]),
        header({}),
        header({"heads": None}),
        header({"heads": {**TENSOR, "dtype": "F3"}}, bytes(4)),
        header({"heads": {**TENSOR, "dtype": "F8_E4M3", "data_offsets": [0, 1]}}, bytes(1)),
        header({"heads": {**TENSOR, "dtype": "I4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
        header({"heads": {**TENSOR, "shape": [-1]}}, bytes(4)),
        header({"heads": {**TENSOR, "shape": [2**63, 2**63]}}, bytes(4)),
        header({"heads": {**TENSOR, "data_offsets": [4, 0]}}, bytes(4)),
        header({"heads": {**TENSOR, "data_offsets": [0, 2**62]}}, bytes(4)),
        header({"heads": TENSOR, "__metadata__": {"a": 1}}, bytes(4)),
        header(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        header({"heads": TENSOR}, bytes(8)),
    ],
)
def test_files_that_are_none(whole: Path, file: str, content: bytes) -> None:
    (whole / file).write_bytes(content)
    edit_manifest(whole, rehash=True)
    with refused(BundleError, given=f"{whole / file} ", hint="export it again"):
        generate(whole)

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_runtime.bundle.file_info import describe_file
from pad_runtime.bundle.manifest import (
    GraphInfo,
    Manifest,
    PersRMInfo,
    TokenizerInfo,
    TrunkInfo,
    checksum,
    read_manifest,
    verify_files,
    write_manifest,
)
from pad_runtime.errors import BundleError, DeviceError
from tests.support.error_checks import check_line, refused, write_json

ANY_FILE = {"size": 1, "sha256": "0" * 64, "samples": "0" * 64}
ENGINE = {
    "file": "step.onnx",
    "graph": "step",
    "target": "tensorrt",
    "version": "1",
    "platform": "linux-x86_64",
    "compute_capabilities": ["sm89"],
    "profiles": {name: {"sequences": [1, 1, 2], "s": [1, 1, 8]} for name in ("prefill", "decode")},
}
FILES = ("step.onnx", "base.onnx", "weights.bin", "tokenizer.json", "adapters/kind.safetensors", "score.onnx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with a little of everything, over files of a few bytes. The tests change pad.json and nothing else."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "adapters").mkdir()
    for name in FILES:
        (folder / name).write_text(name)
    write_manifest(folder, make_manifest(folder))
    return folder


def make_manifest(folder: Path) -> Manifest:
    return Manifest(
        format="pad-rt-bundle",
        format_version=6,
        versions={"onnx": "1"},
        base="tiny",
        topology="pair",
        reference="backbone",
        precision="fp32",
        float_type="float32",
        dialect="ort",
        vocab_size=300,
        max_length=64,
        max_batch=2,
        max_top_k=20,
        eos_token_ids=[1, 2],
        trunks=[
            TrunkInfo("base", "llama", 84, 2, 6, 2, 16, 2, {}, False, True),
            TrunkInfo("reward", "llama", 84, 2, 6, 2, 16, 1, {"qkv": [84, 160]}, False, True),
        ],
        persrms=[PersRMInfo("kind", "reward", FILES[4], None, ["kind"], [1.0], "reward", "{p} {x}")],
        graphs={name: GraphInfo(f"{name}.onnx", ["input_ids"], ["next_ids"]) for name in ("step", "base", "score")},
        tokenizer=TokenizerInfo("tokenizer.json", None, None, "</s>"),
        files={name: describe_file(folder / name) for name in FILES},
    )


@pytest.fixture
def data(bundle: Path) -> Any:
    """The manifest as JSON; pad.json is put right afterwards."""
    yield json.loads((bundle / "pad.json").read_text())
    write_manifest(bundle, make_manifest(bundle))


def read(bundle: Path, data: Any) -> Manifest:
    write_json(bundle / "pad.json", data)
    return read_manifest(bundle)


def test_what_is_written_is_read(bundle: Path) -> None:
    manifest = make_manifest(bundle)
    assert read_manifest(bundle) == manifest
    assert manifest.trunk_index("reward") == 1
    verify_files(bundle, manifest)


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_the_float_type_is_one_of_numpy(bundle: Path, data: Any, name: str, size: int) -> None:
    dtype = read(bundle, {**data, "float_type": name}).dtype
    assert (dtype.name, dtype.itemsize) == (name, size)


def test_bfloat16_without_its_package(bundle: Path, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert read(bundle, data).dtype.name == "float32"
    with refused(DeviceError, given="ml-dtypes is not installed", hint="pip install 'pad-rt[cuda]'"):
        _ = read(bundle, {**data, "float_type": "bfloat16"}).dtype


def test_no_bundle(tmp_path: Path) -> None:
    with refused(BundleError, given=f"no bundle at {tmp_path / 'absent'}", expected="a folder written by pad-export"):
        read_manifest(tmp_path / "absent")
    with refused(BundleError, given=f"{tmp_path} has no pad.json", expected="a folder written by pad-export"):
        read_manifest(tmp_path)
    with refused(BundleError, given="cannot be read: File name too long", hint="check the path"):
        read_manifest(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 5000, b"1" * 5000, b'{"format": NaN'],
    ids=["empty", "cut", "not UTF-8", "too deep", "too large a number", "cut NaN"],
)
def test_not_json(bundle: Path, data: Any, content: bytes) -> None:
    (bundle / "pad.json").write_bytes(content)
    with refused(BundleError, given=f"{bundle / 'pad.json'} is not JSON", hint="export it again"):
        read_manifest(bundle)


@pytest.mark.parametrize("content", [None, [], "pad-rt-bundle", {}, {"format": "other"}, {"format": ["pad-rt-bundle"]}])
def test_another_programs_json(bundle: Path, data: Any, content: Any) -> None:
    with refused(BundleError, given="is not a PAD-RT manifest", expected='"format": "pad-rt-bundle"'):
        read(bundle, content)


def test_another_version(bundle: Path, data: Any) -> None:
    with refused(BundleError, given="format_version 5", expected="6", hint="install the version that wrote it"):
        read(bundle, {**data, "format_version": 5})


def test_fields_are_exactly_those_known(bundle: Path, data: Any) -> None:
    with refused(BundleError, given="pad.json: unknown field 'colour'", hint="export it again"):
        read(bundle, {**data, "colour": "red"})
    del data["trunks"][1]["head_dim"]
    with refused(BundleError, given="pad.json.trunks[1]: field 'head_dim' is missing", hint="export it again"):
        read(bundle, data)


@pytest.mark.parametrize(
    ("path", "value", "words", "expected"),
    [
        (["max_length"], "64", 'pad.json.max_length is "64"', "a whole number"),
        (["max_length"], True, "pad.json.max_length is true", "a whole number"),
        (["max_length"], 1, "pad.json.max_length is 1", "2 to 2147483647"),
        (["max_length"], 2**31, "pad.json.max_length is 2147483648", "2 to 2147483647"),
        (["max_batch"], 0, "pad.json.max_batch is 0", "1 to 1024"),
        (["max_batch"], 2**40, "pad.json.max_batch is 1099511627776", "1 to 1024"),
        (["max_top_k"], 301, "max_top_k is 301", "at most 300"),
        (["vocab_size"], 0, "pad.json.vocab_size is 0", "1 to 2147483647"),
        (["eos_token_ids"], [1, -1], "pad.json.eos_token_ids[1] is -1", "0 to 2147483647"),
        (["eos_token_ids"], [1, 300], "the largest of eos_token_ids is 300", "at most 299"),
        (["base"], "a\ud800", 'pad.json.base is "a\\ud800"', "text that UTF-8 can carry"),
        (["versions"], {"\ud800": "1"}, 'a key of pad.json.versions is "\\ud800"', "text that UTF-8 can carry"),
        (["topology"], "shared", "topology shared with 2 trunks", "1 if shared"),
        (["reference"], "base", "PersRM 'kind' has the reference_trunk reward", "what goes with the reference 'base'"),
        (["precision"], "int3", 'pad.json.precision is "int3"', "'int8' or 'int4'"),
        (["base"], None, "pad.json.base is null", "text"),
        (["files"], [], "pad.json.files is []", "an object"),
        (["files", "step.onnx", "size"], 1.5, "pad.json.files.step.onnx.size is 1.5", "a whole number"),
        (["trunks"], {}, "pad.json.trunks is {}", "a list"),
        (["trunks", 0, "name"], "first", "the first trunk is 'first'", "'base'"),
        (["trunks", 1, "name"], "", 'pad.json.trunks[1].name is ""', "a name"),
        (["trunks", 1, "name"], "base", "two trunks have one name", ""),
        (["trunks", 1, "num_layers"], 0, "pad.json.trunks[1].num_layers is 0", "1 to 1024"),
        (["trunks", 1, "num_layers"], 2**31, "pad.json.trunks[1].num_layers is 2147483648", "1 to 1024"),
        (["trunks", 1, "num_heads"], 5, "trunk 'reward' has 5 heads over 2 KV heads", "a multiple"),
        (["trunks", 1, "head_dim"], 2**40, "pad.json.trunks[1].head_dim is 1099511627776", "1 to 16777216"),
        (["trunks", 1, "prompt_layers"], 3, "prompt_layers of trunk 'reward' is 3", "at most 2"),
        (["trunks", 1, "prompt_layers"], -1, "pad.json.trunks[1].prompt_layers is -1", "0 to 1024"),
        (["trunks", 1, "lora_sites"], {"qkv": [84]}, "pad.json.trunks[1].lora_sites.qkv is [84]", "[in, out]"),
        (["trunks", 1, "lora_sites"], {"norm": [84, 84]}, 'lora_sites is "norm"', "qkv, o, gate_up, down"),
        (["trunks", 1, "lora_sites"], {}, "PersRM 'kind' has adapter adapters/kind", "none on trunk 'reward'"),
        (["trunks", 1, "has_features"], True, "trunk 'reward' has_features True", "False"),
        (["persrms"], [], "persrms is empty", "at least one reward"),
        (["persrms", 0, "trunk"], "other", "the trunk of PersRM 'kind' is 'other'", "one of reward"),
        (["persrms", 0, "trunk"], "base", "the trunk of PersRM 'kind' is 'base'", "one of reward"),
        (["persrms", 0, "reference_trunk"], "base", "the reference_trunk of PersRM 'kind' is 'base'", "one of reward"),
        (["persrms", 0, "trunk"], "", 'pad.json.persrms[0].trunk is ""', "a name"),
        (["persrms", 0, "reference_trunk"], "", 'pad.json.persrms[0].reference_trunk is ""', "a name"),
        (["persrms", 0, "reference_trunk"], "other", "the reference_trunk of PersRM 'kind' is 'other'", "one of rew"),
        (["persrms", 0, "adapter"], None, "PersRM 'kind' has no adapter", "one on trunk 'reward'"),
        (["persrms", 0, "adapter"], "", 'pad.json.persrms[0].adapter is ""', "a path inside the bundle"),
        (["persrms", 0, "feature_head"], FILES[4], "trunk 'reward' has_features False", "True"),
        (["persrms", 0, "features"], [""], 'pad.json.persrms[0].features[0] is ""', "a name"),
        (["persrms", 0, "prompt_template"], "{p}", "the prompt_template of PersRM 'kind' has no {x}", "a place for"),
        (["persrms", 0, "default_weights"], [], "PersRM 'kind' has 0 default_weights", "1"),
        (["persrms", 0, "default_weights"], [float("nan")], "default_weights[0] is NaN", "a finite number"),
        (["persrms", 0, "default_weights"], [10**400], "default_weights[0] is 1000", "a finite number"),
        (["persrms", 0, "adapter"], "other.safetensors", "the adapter of PersRM 'kind' is 'other.saf", "one of"),
        (["graphs"], {}, "a graph that every bundle has is 'step'", "one of none"),
        (["files", "../outside"], ANY_FILE, 'a key of pad.json.files is "../outside"', "a path inside the bundle"),
        (["files", "/etc/passwd"], ANY_FILE, 'a key of pad.json.files is "/etc/passwd"', "a path inside the bundle"),
        (["files", "a\0b"], ANY_FILE, 'a key of pad.json.files is "a\\u0000b"', "a path inside the bundle"),
        (["files", "absent"], ANY_FILE, "absent is missing", ""),
        (["files", "x" * 300], ANY_FILE, "cannot be read: File name too long", ""),
        (["engines"], [ENGINE | {"compute_capabilities": ["89"]}], '.compute_capabilities[0] is "89"', '"sm89"'),
        (["engines"], [ENGINE | {"profiles": {}}], "engine step.onnx has the profiles none", "prefill and decode"),
        (["engines"], [ENGINE | {"profiles": {"decode": {"s": [2, 1, 3]}}}], "decode.s is [2, 1, 3]", "[least, tuned"),
        (
            ["engines"],
            [ENGINE | {"profiles": {"prefill": {"s": [1, 1, 1]}, "decode": {}}}],
            "profile prefill of step.onnx lacks an axis",
            "sequences and s",
        ),
        (["files", "step.onnx", "size"], 8, "step.onnx has 9 bytes", "8"),
        (["files", "step.onnx", "sha256"], "0" * 64, "step.onnx was altered", ""),
        (["files", "step.onnx", "sha256"], "0" * 63, "pad.json.files.step.onnx.sha256 is ", "a SHA-256"),
    ],
)
def test_wrong_values(bundle: Path, data: Any, path: list[Any], value: Any, words: str, expected: str) -> None:
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with refused(BundleError, given=words, expected=expected):
        read(bundle, data)


def test_only_verify_files_hashes_large_files(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_runtime.bundle.held_file._SMALL", 10)
    manifest = make_manifest(bundle)
    altered = {**manifest.files, "weights.bin": replace(manifest.files["weights.bin"], sha256="0" * 64)}
    data = json.loads((bundle / "pad.json").read_text())
    data["files"]["weights.bin"]["sha256"] = "0" * 64
    try:
        assert read(bundle, data).files == altered
        with refused(BundleError, given="weights.bin was altered", hint="copy it again"):
            verify_files(bundle, read_manifest(bundle))
    finally:
        write_manifest(bundle, manifest)


# -- any change anywhere --------------------------------------------------------------------------------------------

names = st.sampled_from(["base", "reward", "step.onnx", "qkv", "files", "..", "", ".", "a\0b", "\ud800", "x" * 300])
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2**63, 10**400]),
    st.floats(),
    st.text(max_size=8),
    names,
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(names, st.text(max_size=4)), inner, max_size=3)
    ),
    max_leaves=6,
)


def containers(value: Any) -> list[Any]:
    """Every list and object in a JSON value, itself included."""
    if not isinstance(value, dict | list) or not value:
        return []
    children = value.values() if isinstance(value, dict) else value
    return [value, *(found for child in children for found in containers(child))]


@settings(max_examples=250)
@given(choices=st.data())
def test_any_change_gives_a_manifest_or_a_bundle_error(bundle: Path, choices: st.DataObject) -> None:
    manifest = make_manifest(bundle)
    write_manifest(bundle, manifest)
    data = json.loads((bundle / "pad.json").read_text())
    for _ in range(choices.draw(st.integers(1, 3))):
        place = choices.draw(st.sampled_from(containers(data)))
        key = choices.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        change = choices.draw(st.sampled_from(["drop", "replace", "insert", "copy"]))
        if change == "drop":
            del place[key]
        elif change == "replace":
            place[key] = choices.draw(values)
        else:
            added = copy.deepcopy(place[key]) if change == "copy" else choices.draw(values)
            if isinstance(place, dict):
                place[choices.draw(names)] = added
            else:
                place.insert(key, added)
        if not containers(data):
            break
    started = time.process_time()
    try:
        assert isinstance(read(bundle, data), Manifest)
    except BundleError as error:
        check_line(error)
    assert time.process_time() - started < 1
    write_manifest(bundle, manifest)


def test_single_bytes_are_noticed(bundle: Path) -> None:
    """4,096 changes of one byte: each is refused, or leaves the manifest what it was."""
    manifest = make_manifest(bundle)
    write_manifest(bundle, manifest)
    text, draw = (bundle / "pad.json").read_bytes(), np.random.default_rng(0)
    refusals = 0
    for place, change in zip(draw.integers(len(text), size=4096), draw.integers(1, 256, size=4096), strict=True):
        changed = bytearray(text)
        changed[place] ^= change
        (bundle / "pad.json").write_bytes(changed)
        try:
            assert read_manifest(bundle) == manifest
        except BundleError as error:
            check_line(error)
            refusals += 1
    write_manifest(bundle, manifest)
    assert 4000 < refusals < 4096, "and spaces may be other spaces"


def test_a_change_with_the_old_checksum(bundle: Path, data: Any) -> None:
    """The order of fields counts too: an engine holds its profiles in the order in which they are listed."""
    for changed in ({**data, "max_batch": 3}, {**data, "checksum": "0" * 64}, dict(reversed(data.items()))):
        (bundle / "pad.json").write_text(json.dumps(changed))
        with refused(BundleError, given=f"{bundle / 'pad.json'} was altered", hint="copy it again"):
            read_manifest(bundle)
    del data["checksum"]
    (bundle / "pad.json").write_text(json.dumps(data))
    with refused(BundleError, given=f"{bundle / 'pad.json'} was altered", hint="copy it again"):
        read_manifest(bundle)
    (bundle / "pad.json").write_text(json.dumps({**data, "checksum": checksum(data)}, indent=7))
    assert read_manifest(bundle) == make_manifest(bundle)


@settings(max_examples=150)
@given(start=st.integers(0), length=st.integers(0, 40), replacement=st.binary(max_size=8))
def test_any_damage_gives_a_manifest_or_a_bundle_error(
    bundle: Path, start: int, length: int, replacement: bytes
) -> None:
    manifest = make_manifest(bundle)
    write_manifest(bundle, manifest)
    text = (bundle / "pad.json").read_bytes()
    at = start % len(text)
    (bundle / "pad.json").write_bytes(text[:at] + replacement + text[at + length :])
    try:
        assert isinstance(read_manifest(bundle), Manifest)
    except BundleError as error:
        check_line(error)
    write_manifest(bundle, manifest)

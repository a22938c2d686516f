from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_rt import EncodedPrompt, GenerationConfig, Generator, Preference
from pad_runtime.bundle import contract
from pad_runtime.errors import (
    BundleError,
    DeviceError,
    OptionError,
    OutOfMemoryError,
    PadError,
    PreferenceError,
    PromptError,
)
from pad_runtime.loaded_bundle import Bundle
from tests.support.error_checks import check_line, edit_manifest, refused

FILES = (
    "adapters/cheerful.safetensors",
    "base.onnx",
    "chat_template.jinja",
    "score.onnx",
    "step.onnx",
    "tokenizer.json",
    "weights.bin",
)
SHORT = GenerationConfig(max_new_tokens=2)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator.load(tiny_bundle, num_threads=1)


def test_the_list_of_files_is_complete(tiny_bundle: Path) -> None:
    assert sorted(json.loads((tiny_bundle / "pad.json").read_text())["files"]) == list(FILES)


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file(bundle: Path, name: str) -> None:
    path = bundle / name
    data = path.read_bytes()
    for size in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with refused(BundleError, given=f"{path} has {size} bytes", expected=str(len(data)), hint="copy it again"):
            Generator.load(bundle)
    path.unlink()
    with refused(BundleError, given=f"{path} is missing", hint="copy it again"):
        Generator.load(bundle)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(bundle: Path, name: str) -> None:
    path = bundle / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with refused(BundleError, given=f"{path} was altered", hint="copy it again"):
        Generator.load(bundle)


def test_a_truncated_manifest(bundle: Path) -> None:
    path = bundle / "pad.json"
    path.write_bytes(path.read_bytes()[:-3])
    with refused(BundleError, given=f"{path} is not JSON", hint="copy it again"):
        Generator.load(bundle)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("step.onnx", b"no graph", "step.onnx is not an ONNX file"),
        ("step.onnx", b"", "step.onnx is not an ONNX file"),
        ("step.onnx", b"\x3a\x00", "differ in 3 sizes"),  # a model whose graph is empty
        ("weights.bin", b"\0" * 100, "ONNX Runtime cannot open"),
        ("tokenizer.json", b"{}", "cannot be read"),
        ("tokenizer.json", b'{"added_tokens": 3}', "cannot be read"),
        ("chat_template.jinja", b"{% if %}", "chat template has an error in line 1"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja cannot be read"),
    ],
)
def test_whole_files_of_the_wrong_content(bundle: Path, name: str, content: bytes, words: str) -> None:
    (bundle / name).write_bytes(content)
    edit_manifest(bundle, rehash=True)
    with refused(BundleError, given=words, hint="export"):
        Generator.load(bundle)


def test_an_adapter_file_that_is_none(bundle: Path) -> None:
    (bundle / FILES[0]).write_bytes(b"12345678 no safetensors")
    edit_manifest(bundle, rehash=True)
    generator = Generator.load(bundle, num_threads=1)
    with refused(BundleError, given=f"{bundle / FILES[0]} cannot be read", hint="export it again"):
        generator.generate("hi", preference="short", config=SHORT)
    assert generator.generate("hi", config=SHORT).token_ids


def test_large_weights_are_hashed_on_request(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each load they are sampled: that tells a lost stretch, and not one bit."""
    monkeypatch.setattr("pad_runtime.bundle.held_file._SMALL", 200_000)
    path = bundle / "weights.bin"
    data = bytearray(path.read_bytes())
    assert len(data) > 200_000
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert Generator.load(bundle, num_threads=1).generate("hi", config=SHORT).token_ids
    with refused(BundleError, given=f"{path} was altered", hint="copy it again"):
        Generator.load(bundle, check=True)
    with refused(BundleError, given=f"{path} was altered", hint="copy it again"):
        Bundle(bundle, check=True)
    data[70_000 : 70_000 + 2**16] = bytes(2**16)
    path.write_bytes(data)
    with refused(BundleError, given=f"{path} was altered", hint="copy it again"):
        Generator.load(bundle)


# -- graph and manifest ---------------------------------------------------------------------------------------------


def test_the_wrong_graph_under_the_right_name(bundle: Path) -> None:
    shutil.copy(bundle / "base.onnx", bundle / "step.onnx")
    edit_manifest(bundle, rehash=True)
    with refused(BundleError, given=f"{bundle / 'step.onnx'} and the manifest differ in", hint="export it again"):
        Generator.load(bundle)


@pytest.mark.parametrize("which", ["inputs", "outputs"])
def test_a_name_that_the_graph_does_not_have(bundle: Path, which: str) -> None:
    graphs = json.loads((bundle / "pad.json").read_text())["graphs"]
    graphs["step"][which].append("extra")
    edit_manifest(bundle, graphs=graphs)
    with refused(BundleError, given=f"step.onnx and the manifest differ in 1 {which}: extra", hint="export it again"):
        Generator.load(bundle)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_layers", 1, "nothing feeds past_key_values.1.key"),
        ("num_layers", 3, "the graph has no past_key_values.2.key"),
        ("head_dim", 32, "past_key_values.0.key is tensor(float) "),
        ("num_kv_heads", 3, "past_key_values.0.key is tensor(float) "),
        ("has_features", True, "trunk 'base' has_features True"),
        ("lora_sites", {}, "PersRM 'cheerful' has adapter"),
        ("lora_sites", {"qkv": [84, 160]}, "nothing feeds lora_gate.o"),
        ("prompt_layers", 1, "differ in"),
        ("hidden_size", 96, "hidden_size is 96, and 84 in the tables of trunk 'base'"),
        ("lora_sites", {"qkv": [84, 161]}, "lora.0.qkv.b is tensor(float) "),
    ],
)
def test_sizes_that_the_graph_does_not_have(bundle: Path, field: str, value: Any, words: str) -> None:
    manifest = json.loads((bundle / "pad.json").read_text())
    edit_manifest(bundle, trunks=[{**manifest["trunks"][0], field: value}])
    with refused(BundleError, given=words, hint="export it again"):
        Generator.load(bundle)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("vocab_size", 10**6, "vocab_size is 1000000, and 356 in the tables of trunk 'base'"),
        ("vocab_size", 355, "vocab_size is 355, and 356 in the tables of trunk 'base'"),
        ("max_length", 2**31 - 1, "max_length is 2147483647, and 256 in the tables of trunk 'base'"),
    ],
)
def test_limits_that_the_tables_do_not_have(bundle: Path, field: str, value: int, words: str) -> None:
    edit_manifest(bundle, **{field: value}, eos_token_ids=[])
    with refused(BundleError, given=words, hint="export it again"):
        Generator.load(bundle)
    with refused(BundleError, given=words, hint="export it again"):
        Bundle(bundle, num_threads=1).graph(contract.BASE_GRAPH)


def test_a_shorter_max_length_is_kept(bundle: Path) -> None:
    edit_manifest(bundle, max_length=20)
    with refused(PromptError, given="a prompt of 20 tokens", expected="at most 19"):
        Generator.load(bundle, num_threads=1).generate(EncodedPrompt([3] * 20), config=SHORT)


def test_another_float_type_than_the_graphs(bundle: Path) -> None:
    edit_manifest(bundle, float_type="float16")
    with refused(BundleError, given="past_key_values.0.key is tensor(float)", hint="export it again"):
        Generator.load(bundle)


def test_the_graph_of_the_base_alone_is_checked_too(bundle: Path) -> None:
    shutil.copy(bundle / "step.onnx", bundle / "base.onnx")
    edit_manifest(bundle, rehash=True)
    generator = Generator.load(bundle, num_threads=1)
    with refused(BundleError, given=f"{bundle / 'base.onnx'} and the manifest differ in", hint="export it again"):
        generator.generate("hi", config=SHORT)


def test_the_score_graph_is_checked_too(bundle: Path) -> None:
    shutil.copy(bundle / "step.onnx", bundle / "score.onnx")
    edit_manifest(bundle, rehash=True)
    with refused(BundleError, given=f"{bundle / 'score.onnx'} and the manifest differ in", hint="export it again"):
        Bundle(bundle, num_threads=1).scorer()
    graphs = json.loads((bundle / "pad.json").read_text())["graphs"]
    edit_manifest(bundle, graphs={**graphs, "score": {**graphs["step"], "file": "score.onnx"}})
    with refused(BundleError, given="nothing feeds past_key_values.0.key", hint="export it again"):
        Bundle(bundle, num_threads=1).scorer()


# -- device and memory ----------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(
        DeviceError,
        given="device 'tpu'",
        expected="one of auto, tensorrt, tensorrt-rtx, cuda, ort-tensorrt, ort-tensorrt-rtx, cpu",
    ):
        Generator.load(tiny_bundle, device="tpu")
    with refused(DeviceError, given="num_threads 0", expected="at least 1"):
        Generator.load(tiny_bundle, num_threads=0)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["OtherExecutionProvider"])
    with refused(DeviceError, given="device 'cpu' is not available", hint="pip install"):
        Generator.load(tiny_bundle, device="cpu")
    with refused(DeviceError, given="device 'cpu' is not available", hint="pip install"):
        Generator.load(tiny_bundle)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with refused(DeviceError, given="onnxruntime is not installed", hint="pip install 'pad-rt[cpu]'"):
        Generator.load(tiny_bundle)


def test_no_memory_for_the_cache(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator.load(tiny_bundle, num_threads=1)
    zeros = np.zeros

    def no_memory_for_a_cache(shape: Any, dtype: Any) -> Any:
        if isinstance(shape, tuple) and len(shape) == 4:
            raise MemoryError
        return zeros(shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr("pad_runtime.devices.buffers.np.zeros", no_memory_for_a_cache)
        with refused(OutOfMemoryError, given="no memory for a buffer of", hint="shorter prompts"):
            generator.generate("hi", preference="short", config=SHORT)
    expected = Generator.load(tiny_bundle, num_threads=1).generate("hi", preference="short", config=SHORT)
    assert generator.generate("hi", preference="short", config=SHORT).token_ids == expected.token_ids


def test_no_memory_for_the_prompt(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

        raise RuntimeException("bfc_arena: Failed to allocate memory for requested buffer of size 3145728")

    monkeypatch.setattr("onnxruntime.InferenceSession.run_with_iobinding", fail)
    with refused(OutOfMemoryError, given="no memory for a buffer of 3 MiB", hint="shorter prompts"):
        Generator.load(tiny_bundle).generate("hi", preference="short", config=SHORT)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_no_memory_for_the_weights(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with refused(OutOfMemoryError, given=f"no memory for {tiny_bundle / 'step.onnx'}", hint="close other programs"):
        Generator.load(tiny_bundle)


# -- requests -------------------------------------------------------------------------------------------------------


def test_a_prompt_at_and_over_max_length(generator: Generator) -> None:
    longest = generator.manifest.max_length
    result = generator.generate(EncodedPrompt([3] * (longest - 1)), config=SHORT)
    assert len(result.token_ids) == 1
    with refused(PromptError, given=f"a prompt of {longest} tokens", expected=f"{longest - 1}", hint="--max-length"):
        generator.generate(EncodedPrompt([3] * longest))
    with refused(PromptError, given="a prompt of 400 tokens", expected=f"{longest - 1}", hint="shorten it"):
        generator.generate(EncodedPrompt([3], [3] * 400), preference="short")


def test_limits_of_the_bundle(generator: Generator) -> None:
    with refused(OptionError, given="top_k 21", expected="at most 20", hint="--max-top-k"):
        generator.generate("hi", config=GenerationConfig(top_k=21))
    with refused(OptionError, given="1 preferences for 2 prompts", expected="one for each"):
        generator.generate_batch(["hi"] * 2, preferences=["short"])
    with refused(PromptError, given="a str for generate_batch", hint="use generate"):
        generator.generate_batch("hi")


def test_an_unknown_feature(generator: Generator) -> None:
    with refused(PreferenceError, given="unknown feature 'sad'", expected="one of cheerful"):
        generator.generate("hi", preference=Preference(weights={"sad": 1.0}))


@pytest.mark.parametrize(("beta", "weight"), [(1e26, 1.0), (-1e26, 1.0), (1.0, 1e300), (1e200, 1e200)])
def test_a_preference_that_no_float32_holds(generator: Generator, beta: float, weight: float) -> None:
    config = GenerationConfig(beta=beta, max_new_tokens=2)
    with refused(PreferenceError, given="a preference of strength", expected="at most 1e+25", hint="lower them"):
        generator.generate("hi", preference=Preference(weights={"cheerful": weight}), config=config)
    assert generator.generate("hi", config=config).token_ids


def test_any_temperature_samples_from_finite_scores(generator: Generator) -> None:
    for temperature in (5e-324, 1e-40, 1e300):
        config = GenerationConfig(temperature=temperature, max_new_tokens=2)
        assert generator.generate("hi", preference="short", config=config).token_ids


def test_a_stream_refuses_when_it_is_called(generator: Generator) -> None:
    with refused(PromptError, given="an empty prompt", expected="some text"):
        generator.stream("")


def test_trace_without_a_preference(generator: Generator) -> None:
    with refused(OptionError, given="trace without a preference", hint="leave trace out"):
        generator.generate("hi", trace=True)


# -- any arguments --------------------------------------------------------------------------------------------------


def mostly(right: st.SearchStrategy[Any], *others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What works, so that generation is reached, and one time in ten anything else."""
    return st.integers(0, 9).flatmap(lambda number: st.one_of(*others) if number == 9 else right)


words = st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=12)
texts = mostly(words, st.sampled_from(["", " ", "{p}", "<s>", "</s>", "\ud800", "x" * 300]))
ids = mostly(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.lists(st.integers(-1, 500), max_size=3))
turn = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts})
messages = st.builds(lambda turns, last: [*turns, {"role": "user", "content": last}], st.lists(turn, max_size=2), texts)
junk = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4), st.lists(turn), texts)
numbers = mostly(st.floats(-10, 10), st.floats(), st.none(), words)
features = st.dictionaries(mostly(st.just("cheerful"), words), numbers, min_size=1)
prompts = mostly(st.one_of(texts, messages, st.tuples(ids, ids)), junk, st.tuples(ids, st.none()), st.lists(junk))
preferences = mostly(
    st.one_of(texts, st.tuples(texts, features), st.lists(st.tuples(texts, numbers), min_size=1, max_size=3)),
    st.tuples(st.none(), features),
    junk,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "beta": numbers,
        "top_k": mostly(st.integers(1, 20), st.integers()),
        "temperature": mostly(st.floats(0, 10), st.floats(0), numbers),
        "top_p": mostly(st.floats(0.01, 1), numbers),
        "seed": mostly(st.integers(0, 2**63 - 1), st.integers()),
        "stop": mostly(st.lists(words, max_size=2), texts, junk),
        "base_sees_preference": st.booleans(),
    },
)


@settings(max_examples=300)
@given(prompt=prompts, preference=preferences, trace=st.booleans(), options=options)
def test_any_arguments_give_a_reply_or_a_pad_error(
    generator: Generator, prompt: Any, preference: Any, trace: bool, options: dict[str, Any]
) -> None:
    try:
        if isinstance(prompt, tuple):
            prompt = EncodedPrompt(*prompt)
        if isinstance(preference, tuple):
            preference = Preference(*preference)
        config = GenerationConfig.from_mapping({"max_new_tokens": 2, **options})
        result = generator.generate(prompt, preference=preference, config=config, trace=trace)
    except PadError as error:
        check_line(error)
        return
    assert len(result.token_ids) <= 2
    assert all(0 <= token_id < generator.manifest.vocab_size for token_id in result.token_ids)
    assert all(np.isfinite(step.scores).all() for step in result.trace)

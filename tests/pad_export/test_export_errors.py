from __future__ import annotations

import errno
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tiny_models
from error_checks import error_line, refused, snapshot
from pad_export import export
from pad_export.cli import main
from pad_export.export import export_bundle
from pad_runtime.bundle import Bundle
from pad_runtime.errors import (
    AdapterError,
    CheckpointError,
    OptionError,
    OutOfMemoryError,
    PadError,
    TokenizerMismatchError,
    VerificationError,
)
from tiny_models import TinyModels


@pytest.fixture(params=["new", "replaced"])
def target(request: pytest.FixtureRequest, tiny: TinyModels, tmp_path: Path) -> Iterator[Path]:
    """Where to export to, nothing or an old bundle; either must be as it was afterwards, with nothing beside it."""
    home = tmp_path / "home"
    home.mkdir()
    if request.param == "replaced":
        shutil.copytree(tiny.bundle, home / "bundle")
    before = snapshot(home)
    yield home / "bundle"
    assert snapshot(home) == before


def run(base: Path, output: Path, *persrms: Path, **options: Any) -> None:
    export_bundle(base, output, persrms=persrms, quiet=True, **options)


def copy(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of a model or adapter folder, with changes to its configuration."""
    shutil.copytree(folder, to)
    name = "adapter_config.json" if (to / "adapter_config.json").exists() else "config.json"
    fields = json.loads((to / name).read_text())
    (to / name).write_text(json.dumps({**fields, **config}))
    return to


# -- what cannot be exported ----------------------------------------------------------------------------------------


def test_adapter_for_a_base_of_other_shapes(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "wide", "llama", seed=3, hidden_size=90)
    tiny_models.make_adapter(tmp_path / "lora", tmp_path / "wide", seed=4)
    adapter = copy(tmp_path / "lora", tmp_path / "other", base_model_name_or_path=str(tiny.base))
    with refused(AdapterError, given="[90, 72] in the adapter and [84, 72] in the base", expected=str(tiny.base)):
        run(tiny.base, target, adapter)


def test_adapter_with_more_layers_than_the_base(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "deep", "llama", seed=3, num_hidden_layers=3)
    tiny_models.make_adapter(tmp_path / "lora", tmp_path / "deep", seed=4)
    with refused(AdapterError, given="model.layers.2.mlp.down_proj is not in the base", hint="trained on"):
        run(tiny.base, target, tmp_path / "lora", topology="shared")


def test_adapter_for_a_base_of_another_name(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    adapter = copy(tiny.adapter, tmp_path / "other", base_model_name_or_path="someone/other-model")
    with refused(AdapterError, given="'someone/other-model'", expected=str(tiny.base), hint="--topology shared"):
        run(tiny.base, target, adapter)


def test_vocabulary_of_another_tokenizer(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    merged = copy(tiny.base, tmp_path / "merged")
    text = (merged / "tokenizer.json").read_text()
    (merged / "tokenizer.json").write_text(text.replace('"plain-added"', '"another-added"'))
    with refused(TokenizerMismatchError, given="in 1 of ", expected="the base's own tokenizer", hint="train"):
        run(tiny.base, target, merged)


def test_a_head_with_fewer_rows_than_the_base(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    size = json.loads((tiny.base / "config.json").read_text())["vocab_size"]
    tiny_models.make_base(tmp_path / "small", "llama", seed=3, vocab_size=size - 2)
    with refused(CheckpointError, given=f"{size - 2} rows", expected=f"{size}", hint="resize_token_embeddings"):
        run(tiny.base, target, tmp_path / "small")


def test_a_value_head_of_another_size(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    adapter = copy(tiny.adapter, tmp_path / "lora")
    tiny_models.make_head(adapter, 60, seed=5)
    with refused(AdapterError, given="hidden size 60", expected="84", hint="trained with this backbone"):
        run(tiny.base, target, adapter)


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        ({"model_type": "gpt2"}, "gpt2", "one of llama (Llama 2"),
        ({"hidden_act": "relu"}, "activation 'relu'", "silu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, "'dynamic'", "yarn"),
        ({"quantization_config": {"bits": 4}}, "is quantised", "full-precision weights"),
    ],
)
def test_a_base_that_is_no_decoder_of_ours(
    tiny: TinyModels, target: Path, tmp_path: Path, config: dict[str, Any], given: str, expected: str
) -> None:
    base = copy(tiny.base, tmp_path / "base", **config)
    with refused(CheckpointError, given=given, expected=expected):
        run(base, target)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_base(tiny: TinyModels, target: Path, tmp_path: Path, share: float) -> None:
    base = copy(tiny.base, tmp_path / "base")
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[: int(len(weights) * share)])
    with refused(CheckpointError, given="model.safetensors", hint="again"):
        run(base, target)


def test_paths_that_hold_something_else(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with refused(CheckpointError, given=f"{absent} does not exist", expected="a model folder", hint="check the path"):
        run(absent, target)
    with refused(CheckpointError, given=f"{absent} does not exist", expected="a model folder", hint="check the path"):
        run(tiny.base, target, absent)
    with refused(CheckpointError, given="no config.json", hint="this is an adapter: give the model it belongs to"):
        run(tiny.adapter, target)
    with refused(CheckpointError, given="no config.json", hint="the folder that the model was saved to"):
        run(tiny.bundle, target)


def test_the_same_persrm_twice(tiny: TinyModels, target: Path) -> None:
    with refused(OptionError, given="two PersRMs are called 'cheerful'", hint="rename the folder"):
        run(tiny.base, target, tiny.adapter, tiny.adapter)


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({"max_length": 257}, "--max-length 257", "2 to 256"),
        ({"max_length": 1}, "--max-length 1", "2 to 256"),
        ({"max_batch": 0}, "--max-batch 0", "1 to 1024"),
        ({"max_top_k": 0}, "--max-top-k 0", "at least 1"),
    ],
)
def test_limits_out_of_range(tiny: TinyModels, target: Path, options: Any, given: str, expected: str) -> None:
    with refused(OptionError, given=given, expected=expected):
        run(tiny.base, target, tiny.adapter, **options)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"topology": "pair"}, "--topology pair without a PersRM"),
        ({"reference": "backbone"}, "--reference backbone without a PersRM"),
        ({"backbone": Path("x")}, "--backbone without a PersRM"),
    ],
)
def test_options_that_need_a_persrm(tiny: TinyModels, target: Path, options: Any, given: str) -> None:
    with refused(OptionError, given=given):
        run(tiny.base, target, **options)


def test_a_merged_persrm_has_no_shared_topology_and_no_backbone(tiny: TinyModels, target: Path) -> None:
    with refused(OptionError, given="--topology shared with the merged checkpoint", hint="--topology pair"):
        run(tiny.base, target, tiny.base, topology="shared")
    with refused(OptionError, given="--reference backbone with the merged", expected="un-tuned", hint="--backbone DIR"):
        run(tiny.base, target, tiny.base, reference="backbone")
    with refused(OptionError, given="2 PersRMs, a merged checkpoint among them", expected="one merged checkpoint"):
        run(tiny.base, target, tiny.base, tiny.adapter)


def test_head_dim_that_the_ort_dialect_cannot_rotate(target: Path, tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "base", "llama", seed=3, head_dim=24)
    with refused(CheckpointError, given="head_dim 24", expected="a multiple of 16", hint="--dialect standard"):
        run(tmp_path / "base", target)


def test_the_standard_dialect_takes_any_head_dim(tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "base", "llama", seed=3, head_dim=24, num_hidden_layers=1)
    run(tmp_path / "base", tmp_path / "bundle", dialect="standard")
    assert Bundle(tmp_path / "bundle").manifest.trunks[0].head_dim == 24


# -- what goes wrong half-way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["write_weights", "_save_graph", "write_adapter", "write_manifest", "verify_bundle"])
@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError, "no space left on the disk of"),
        (MemoryError(), OutOfMemoryError, "no memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError, "no memory"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
        (OSError(errno.EIO, "a broken disk"), OSError, "a broken disk"),
    ],
    ids=["Ctrl-C", "disk full", "no memory", "no memory in torch", "bug", "broken disk"],
)
def test_a_failure_leaves_nothing(
    tiny: TinyModels,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    error: BaseException,
    kind: type[BaseException],
    words: str,
) -> None:
    real = getattr(export, at)

    def fail(*args: Any, **kwargs: Any) -> None:
        if at != "verify_bundle":  # that one writes nothing, and takes its time
            real(*args, **kwargs)
        raise error

    monkeypatch.setattr(export, at, fail)
    with pytest.raises(kind, match=words) as caught:
        run(tiny.base, target, tiny.adapter)
    assert isinstance(caught.value, PadError) == issubclass(kind, PadError)


@pytest.mark.parametrize("num_renamed", [0, 1])
def test_an_interrupt_while_the_new_bundle_takes_its_place(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_renamed: int
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    before = snapshot(tmp_path)
    rename = Path.rename
    renamed: list[Path] = []

    def interrupted(path: Path, to: Path) -> Path:
        renamed.append(path)
        if len(renamed) == num_renamed + 1:
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.base, bundle, tiny.adapter, verify=False)
    assert snapshot(tmp_path) == before


def test_an_interrupt_just_after_the_new_bundle_took_its_place(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        rename(path, to)
        if to == bundle:
            raise KeyboardInterrupt
        return to

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.base, bundle, verify=False)
    assert Bundle(bundle).manifest.persrms[0].name == "contrast"
    assert list(tmp_path.iterdir()) == [bundle]


def test_an_export_that_differs_from_torch(tiny: TinyModels, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.write_adapter

    def write_wrong(path: Path, *args: Any) -> None:
        real(path, *args)
        tensors = load_file(path)
        save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, path)

    monkeypatch.setattr(export, "write_adapter", write_wrong)
    with pytest.raises(VerificationError, match="differences from torch: run 0") as caught:
        run(tiny.base, target, tiny.adapter)
    assert "\n" not in str(caught.value)


def test_a_new_export_replaces_the_old(tiny: TinyModels, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    run(tiny.base, bundle, verify=False, max_length=100)
    assert Bundle(bundle).manifest.max_length == 100
    assert not (bundle / "adapters").exists()
    assert list(tmp_path.iterdir()) == [bundle]


def test_a_link_is_replaced_and_not_followed(tiny: TinyModels, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    before = snapshot(bundle)
    (tmp_path / "link").symlink_to(bundle)
    run(tiny.base, tmp_path / "link", verify=False)
    assert snapshot(bundle) == before
    assert not (tmp_path / "link").is_symlink()
    assert Bundle(tmp_path / "link").manifest.topology == "shared"


# -- what must not be replaced --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words", "hint"),
    [
        ({"notes.txt": "mine"}, "is not a bundle", "remove that one"),
        ({"sub/notes.txt": "mine"}, "is not a bundle", "remove that one"),
        ({"pad.json": "{}"}, "is not a bundle", "remove that one"),
        ({"pad.json": "not JSON"}, "is not a bundle", "remove that one"),
        ({"pad.json": '{"format": "a notepad", "files": {}}'}, "is not a bundle", "remove that one"),
        ({"pad.json": '{"format": "pad-rt-bundle", "files": {}}', "a/b": ""}, "holds a/b", "move it away"),
    ],
)
def test_a_folder_of_the_user_is_never_touched(
    tiny: TinyModels, tmp_path: Path, files: dict[str, str], words: str, hint: str
) -> None:
    for name, text in files.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = snapshot(tmp_path)
    with refused(OptionError, given=words, hint=hint):
        run(tiny.base, tmp_path / "mine")
    assert snapshot(tmp_path) == before


def test_places_where_nothing_can_be_written(tiny: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with refused(OptionError, given="file exists and is not a folder", hint="choose another path"):
        run(tiny.base, tmp_path / "file")
    with refused(OptionError, given="link exists and is not a folder", hint="choose another path"):
        run(tiny.base, tmp_path / "link")
    with refused(
        OptionError, given=f"cannot be written: {tmp_path / 'file'}: File exists", hint="choose another folder"
    ):
        run(tiny.base, tmp_path / "file" / "bundle")
    with refused(OptionError, given="File name too long", hint="choose another folder"):
        run(tiny.base, tmp_path / ("x" * 250))
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tiny: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run(tiny.base, tmp_path / "empty", verify=False)
    assert Bundle(tmp_path / "empty").manifest.persrms[0].name == "contrast"


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_bundle_and_says_what_to_try(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pad_rt import cli

    output = tmp_path / "my bundle"
    options = ["--base", str(tiny.base), "--persrm", str(tiny.adapter), "-o", str(output)]
    limits = ["--max-length", "200", "--max-batch", "2", "--max-top-k", "12", "--reference", "backbone"]
    assert main([*options, *limits]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "loading torch"
    assert "verified against torch" in err
    assert "weights:" not in err  # no progress bar where no terminal shows it
    wrote, command = out.splitlines()
    assert wrote.startswith(f"wrote {output} (")
    manifest = Bundle(output).manifest
    assert (manifest.max_length, manifest.max_batch, manifest.max_top_k) == (200, 2, 12)
    assert manifest.reference == "backbone"
    words = shlex.split(command.removeprefix("try: "))
    assert words[:3] == ["pad", "generate", str(output)]
    assert cli.main([*words[1:], "--max-new-tokens", "2"]) == 0


def test_a_quiet_command(tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", str(tiny.base), "-o", str(tmp_path / "bundle"), "--no-verify", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_an_error_of_the_command_is_one_line(
    tiny: TinyModels, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--base", str(tiny.base), "-o", str(target), "--max-length", "1000"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert error_line(err, "pad-export") == "pad-export: error: --max-length 1000; expected 2 to 256"


@pytest.mark.parametrize(
    "arguments", [[], ["--base", "x"], ["--base", "x", "-o", "y", "--precision", "int3"], ["--prec", "fp16"]]
)
def test_wrong_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "pad-export: error: " in capsys.readouterr().err


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "pad_export.export")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["--base", "x", "-o", "y"]) == 2
    assert error_line(capsys.readouterr().err, "pad-export").endswith(
        "onnx is not installed; pip install 'pad-rt[export]'"
    )


def test_a_bug_keeps_its_traceback(tiny: TinyModels, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(export, "_write_graphs", fail)
    with pytest.raises(ZeroDivisionError):
        main(["--base", str(tiny.base), "-o", str(target)])


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_real_process(tiny: TinyModels, tmp_path: Path, signal_number: int, code: int) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    before = snapshot(tmp_path)
    arguments = ["--base", str(tiny.base), "--persrm", str(tiny.adapter), "-o", str(bundle)]
    script = "import sys; from pad_export.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.*.partial/weights.bin")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert snapshot(tmp_path) == before

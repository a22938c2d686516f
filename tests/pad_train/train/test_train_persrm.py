from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer

from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.persrm import read_persrm
from pad_runtime.errors import CheckpointError, DataError, OptionError
from pad_train.pairs.pair import Pair
from pad_train.train import persrm_folder, stage_trainer, train
from pad_train.train.example import TrainingBatch, make_batch, with_words
from pad_train.train.reward_model import BaseLogProbs, RewardModel
from pad_train.train.stage_trainer import Item, StageTrainer
from tests.support import tiny_models, tiny_training
from tests.support.error_checks import refused, snapshot

NAMES = ("eggs", "noise", "words")
OPTIONS = replace(tiny_training.QUICK, save_steps=2)  # 6 steps a stage
ROUGH = replace(OPTIONS, dtype="bf16", batch=2, accumulate=2)
NO_SPACE = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # as torch.save says it
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "base"
    tiny_models.make_base(folder, "llama", seed=1, num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return with_words(tiny_training.make_pairs(8), tiny_training.FEATURES, 0)


@pytest.fixture(scope="module")
def whole(base: Path, pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What an uninterrupted training writes, by dtype; beside it NAME.json, what training gave back."""
    root = tmp_path_factory.mktemp("whole")
    for options in (OPTIONS, ROUGH):
        metrics = fit(base, pairs, root / options.dtype, options)
        (root / f"{options.dtype}.json").write_text(json.dumps(metrics))
    return {"fp32": root / "fp32", "bf16": root / "bf16"}


def fit(base: Path, pairs: list[Pair], output: Path, options: Any = OPTIONS, **changes: Any) -> dict[str, float]:
    return tiny_training.train(base, pairs, output, options, features=NAMES, **changes)


def at_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, act: Callable[..., Any]) -> None:
    """Let `act(real, *arguments)` take the place of one call of a function, the `number`-th."""
    real, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return act(real, *arguments, **options) if calls[0] == number else real(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# -- what is written ------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_files(base: Path, pairs: list[Pair], whole: dict[str, Path], tmp_path: Path) -> None:
    fit(base, pairs, tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(whole["fp32"])
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # nothing of the work is left
    fit(base, pairs, tmp_path / "other", replace(OPTIONS, seed=1))
    name = "adapter_model.safetensors"
    assert (tmp_path / "other" / name).read_bytes() != (whole["fp32"] / name).read_bytes()


def test_auto_is_what_the_machine_multiplies(
    base: Path, pairs: list[Pair], whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pad_train.train.train.native_dtype", lambda: "fp32")
    fit(base, pairs, tmp_path / "auto", replace(OPTIONS, dtype="auto"))
    for name in sorted(path.name for path in whole["fp32"].iterdir()):
        assert (tmp_path / "auto" / name).read_bytes() == (whole["fp32"] / name).read_bytes(), name


def test_the_folder(base: Path, whole: dict[str, Path]) -> None:
    folder = whole["fp32"]
    metrics = json.loads(folder.with_suffix(".json").read_text())
    persrm = read_persrm(folder)
    assert (persrm.name, persrm.features) == ("taste", NAMES)
    assert persrm.adapter is not None
    assert persrm.feature_head is not None
    assert persrm.feature_head.weight.shape == (3, 84, 84)
    assert len(persrm.default_weights) == 3
    record = json.loads((folder / "training.json").read_text())
    assert record["held_out"] == {name: round(value, 4) for name, value in metrics.items()}
    assert metrics.keys() == {"loss", "accuracy", "accuracy_eggs", "accuracy_noise", "accuracy_words"}
    assert record["num_examples"] == {"training": 24, "held-out": 8}  # 2 of 8 prompts, with all their pairs
    assert record["trained_with"]["options"]["seed"] == 0
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize(("after", "kept"), [(0.9, "stage 2"), (1.1, "stage 1")])
def test_a_second_stage_that_learned_by_heart_is_left_out(
    base: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: float, kept: str
) -> None:
    fit(base, pairs, tmp_path / "stage 1", replace(OPTIONS, head_epochs=0.0))
    fit(base, pairs, tmp_path / "stage 2", OPTIONS)
    losses, told = iter([1.0, after]), list[str]()
    monkeypatch.setattr(train, "measure", lambda *_: {"loss": next(losses)})
    metrics = fit(base, pairs, tmp_path / "taste", OPTIONS, report=told.append)
    assert metrics["loss"] == min(1.0, after)
    files = ("adapter_model.safetensors", "value_head.safetensors", "pad_persrm.json")
    same = {
        stage: all((tmp_path / "taste" / name).read_bytes() == (tmp_path / stage / name).read_bytes() for name in files)
        for stage in ("stage 1", "stage 2")
    }
    assert same == {"stage 1": kept == "stage 1", "stage 2": kept == "stage 2"}
    line = "stage 2 raised the held-out loss from 1.000 to 1.100: what stage 1 gave is kept"
    assert (line in told) == (kept == "stage 1")


def test_held_out_prompts_are_not_trained_on(
    base: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[list[Pair]] = []
    real = train.make_examples

    def watched(some: Sequence[Pair], *arguments: Any, **options: Any) -> Any:
        parts.append(list(some))
        return real(some, *arguments, **options)

    monkeypatch.setattr(train, "make_examples", watched)
    fit(base, pairs, tmp_path / "taste", replace(OPTIONS, epochs=0.2, head_epochs=0.0))
    training, held_out = ({pair.messages[0]["content"] for pair in part} for part in parts)
    assert (len(training), len(held_out)) == (6, 2)
    assert not training & held_out
    assert sorted(map(repr, [*parts[0], *parts[1]])) == sorted(map(repr, pairs))  # nothing lost, nothing twice


def test_people_who_read_the_same_replies_share_the_bases_answer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[list[Item], list[BaseLogProbs]]] = []
    asked: list[int] = []
    real, run_base = train._run_base, RewardModel.run_base

    def watched(model: RewardModel, examples: Sequence[Any], *arguments: Any) -> list[Item]:
        items = real(model, examples, *arguments)
        asked.append(0)
        taken.append((items, [run_base(model, make_batch([example], plain=True), 16) for example in examples]))
        return items

    def counted(model: RewardModel, batch: TrainingBatch, k: int) -> BaseLogProbs:
        asked.append(len(batch.ids))
        return run_base(model, batch, k)

    monkeypatch.setattr(train, "_run_base", watched)
    monkeypatch.setattr(RewardModel, "run_base", counted)
    margins = {"eggs": 1.0, "noise": -1.0}
    some = [replace(pair, weights={}, margins=margins) for pair in tiny_training.make_pairs(3, features=["eggs"])]
    fit(base, some, tmp_path / "taste", replace(OPTIONS, epochs=0.2, head_epochs=0.0))
    items, alone = taken[0]
    assert len(items) == 3 * 2  # two single people and a mixture for each of two pairs
    assert asked[: asked.index(0)] == [2]
    for item, expected in zip(items, alone, strict=True):
        assert torch.equal(item.base.candidates[:, 0], expected.candidates[:, 0])
        torch.testing.assert_close(item.base.log_probs[:, 0], expected.log_probs[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("epochs", "head_epochs"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_stage_may_be_left_out(
    base: Path, pairs: list[Pair], tmp_path: Path, epochs: float, head_epochs: float
) -> None:
    fit(base, pairs, tmp_path / "taste", replace(OPTIONS, epochs=epochs, head_epochs=head_epochs))
    adapter = load_file(tmp_path / "taste" / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name) == (epochs > 0)
    head = load_file(tmp_path / "taste" / "value_head.safetensors")["feature_head.weight"]
    assert not torch.equal(head, torch.eye(84).half().expand(3, -1, -1))
    weights = json.loads((tmp_path / "taste" / "pad_persrm.json").read_text())["default_weights"]
    assert (weights == [0.0, 0.0, 1.0]) == (head_epochs == 0)  # w_p: words alone, until stage 2


def test_nothing_held_out(base: Path, pairs: list[Pair], tmp_path: Path) -> None:
    quick = replace(OPTIONS, held_out=0.0, epochs=0.2, head_epochs=0.2)
    assert fit(base, pairs, tmp_path / "taste", quick) == {}
    assert read_persrm(tmp_path / "taste").features == NAMES


def test_both_stages_change_what_they_should(
    base: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: dict[str, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}

    def watch(name: str) -> None:
        real = getattr(train, name)

        def watched(model: RewardModel, *arguments: Any) -> Any:
            before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            result = real(model, *arguments)
            stages[name] = before, {key: tensor.clone() for key, tensor in model.state_dict().items()}
            return result

        monkeypatch.setattr(train, name, watched)

    watch("_train_trunk")
    watch("_train_head")
    fit(base, pairs, tmp_path / "taste")

    def changed(stage: str) -> set[str]:
        before, after = stages[stage]
        assert before.keys() == after.keys()
        return {name for name in before if not torch.equal(before[name], after[name])}

    first, second = changed("_train_trunk"), changed("_train_head")
    assert second == {"head_change", "bias", "learned_weights"}  # base and LoRA are the same to the last bit
    assert first == {name for name in stages["_train_trunk"][0] if "lora_" in name} | {"head_change", "bias"}
    stored = {name: open_checkpoint(base).tensor(name) for name in ("model.layers.0.mlp.up_proj.weight",)}
    kept = [
        tensor for name, tensor in stages["_train_head"][1].items() if name.endswith("0.mlp.up_proj.base_layer.weight")
    ]
    assert torch.equal(kept[0], stored["model.layers.0.mlp.up_proj.weight"])


def test_batches_of_one_step_are_one_batch(base: Path, pairs: list[Pair], tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=0.0, save_steps=50)
    fit(base, pairs, tmp_path / "whole", replace(options, batch=4, accumulate=1))
    fit(base, pairs, tmp_path / "parts", replace(options, batch=2, accumulate=2))
    fit(base, pairs, tmp_path / "small", replace(options, batch=2, accumulate=1))
    whole, parts, small = (
        load_file(tmp_path / name / "value_head.safetensors") for name in ("whole", "parts", "small")
    )
    name = "feature_head.weight"
    moved = (whole[name].float() - torch.eye(84)).norm()
    assert (whole[name].float() - parts[name].float()).norm() < 0.05 * moved
    assert (whole[name].float() - small[name].float()).norm() > 0.2 * moved


# -- interrupted and repeated ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "call"),
    [("fp32", 4), ("fp32", 7), ("fp32", 11), ("bf16", 9)],
)
def test_interrupted_is_uninterrupted(
    base: Path, pairs: list[Pair], whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    dtype: str, call: int,
) -> None:  # fmt: skip
    options = {"fp32": OPTIONS, "bf16": ROUGH}[dtype]
    with monkeypatch.context() as patched:
        at_call(patched, StageTrainer, "compute_loss", call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(base, pairs, tmp_path / "taste", options)
    assert [path.name for path in tmp_path.iterdir()] == ["taste.partial"]
    steps: list[int] = []
    at_call(monkeypatch, StageTrainer, "compute_loss", -1, interrupt)
    counted = StageTrainer.compute_loss
    monkeypatch.setattr(
        StageTrainer, "compute_loss", lambda *given, **named: steps.append(1) or counted(*given, **named)
    )
    fit(base, pairs, tmp_path / "taste", options)
    assert snapshot(tmp_path / "taste") == snapshot(whole[dtype])
    assert [path.name for path in tmp_path.iterdir()] == ["taste"]
    total = 12 * options.accumulate
    assert total - call < len(steps) <= total - call + 2 * options.accumulate + 1  # went on, and not from the start


def test_a_checkpoint_without_its_mark_is_not_used(
    base: Path, pairs: list[Pair], whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(real: Callable[..., None], trainer: Any, *arguments: Any) -> None:
        real(trainer, *arguments)
        folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        (folder / "trained.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        at_call(patched, Trainer, "_save_checkpoint", 2, cut_off)
        with pytest.raises(KeyboardInterrupt):
            fit(base, pairs, tmp_path / "taste")
    stage = tmp_path / "taste.partial" / "stage1"
    assert {path.name for path in stage.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    lines: list[str] = []
    fit(base, pairs, tmp_path / "taste", report=lines.append)
    assert "stage 1: LoRA and head on 24 examples, from checkpoint-2" in lines
    assert snapshot(tmp_path / "taste") == snapshot(whole["fp32"])


@pytest.mark.parametrize(
    ("error", "call"), list(zip(NO_SPACE, (2, 6, 2), strict=True)), ids=["os", "safetensors", "torch"]
)
def test_a_disk_that_fills_during_a_checkpoint(
    base: Path, pairs: list[Pair], whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception, call: int,
) -> None:  # fmt: skip
    def fill(real: Callable[..., None], tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patched:
        at_call(patched, stage_trainer, "save_file", call, fill)
        with refused(CheckpointError, given=f"no space left on the disk of {tmp_path / 'taste'}", hint="repeat"):
            fit(base, pairs, tmp_path / "taste")
    work = tmp_path / "taste.partial"
    assert [path.name for path in work.glob("*/checkpoint-*")] == ["checkpoint-2"]
    assert all((path / "complete").exists() for path in work.glob("*/checkpoint-*"))
    fit(base, pairs, tmp_path / "taste")
    assert snapshot(tmp_path / "taste") == snapshot(whole["fp32"])


def test_a_disk_that_fills_at_the_very_end(
    base: Path, pairs: list[Pair], whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(real: Callable[..., None], tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise NO_SPACE[0]

    with monkeypatch.context() as patched:
        at_call(patched, persrm_folder, "save_file", 2, fill)
        with refused(CheckpointError, given="no space left", hint="repeat the command"):
            fit(base, pairs, tmp_path / "taste")
    assert not (tmp_path / "taste").exists()
    fit(base, pairs, tmp_path / "taste")
    assert snapshot(tmp_path / "taste") == snapshot(whole["fp32"])


def test_other_failures(base: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Callable[..., None]:
        def raised(*_: Any, **__: Any) -> None:
            raise error

        return raised

    with monkeypatch.context() as patched:
        at_call(patched, StageTrainer, "compute_loss", 1, fail(OSError(errno.EIO, "a broken disk")))
        with refused(CheckpointError, given="taste cannot be made: a broken disk", hint="repeat"):
            fit(base, pairs, tmp_path / "taste")
    at_call(monkeypatch, StageTrainer, "compute_loss", 1, fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        fit(base, pairs, tmp_path / "taste")


def test_other_settings_do_not_go_on(
    base: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_call(monkeypatch, StageTrainer, "compute_loss", 1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(base, pairs, tmp_path / "taste")
    before = snapshot(tmp_path)
    others = ("noise", "eggs", "words")
    for options, some, names in (
        (replace(OPTIONS, seed=1), pairs, NAMES), (OPTIONS, pairs[:-1], NAMES), (OPTIONS, pairs, others)
    ):  # fmt: skip
        with refused(OptionError, given="was begun with another base, other settings or data", hint="remove it"):
            tiny_training.train(base, some, tmp_path / "taste", options, features=names)
    assert snapshot(tmp_path) == before


def test_settings_that_were_cut_off_while_written(base: Path, pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "taste.partial").mkdir()
    (tmp_path / "taste.partial" / "settings.new").write_text('{"options": {')
    fit(base, pairs, tmp_path / "taste", replace(OPTIONS, epochs=0.2, head_epochs=0.0))
    assert read_persrm(tmp_path / "taste").features == NAMES


# -- what cannot be trained on --------------------------------------------------------------------------------------


def test_no_pair_is_left(base: Path, tmp_path: Path) -> None:
    pairs = tiny_training.make_pairs(3)
    lines: list[str] = []
    with refused(DataError, given="no pair is left to train on", hint="see the counts"):
        fit(base, pairs, tmp_path / "taste", replace(OPTIONS, max_prompt=3), report=lines.append)
    assert "training: 4 with a prompt of more than 3 tokens, left out" in lines
    assert "held-out: 2 with a prompt of more than 3 tokens, left out" in lines


def test_a_place_where_nothing_can_be_written(base: Path, pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with refused(OptionError, given=f"cannot be written: {tmp_path / 'file'}: File exists", hint="another folder"):
        fit(base, pairs, tmp_path / "file" / "taste")


def test_a_base_without_a_chat_template(base: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(base, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    turns: tuple[dict[str, str], ...] = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "egg"})
    pairs = tiny_training.make_pairs(4)
    lines: list[str] = []
    quick = replace(OPTIONS, epochs=0.5, head_epochs=0.0)
    fit(plain, [*pairs, replace(pairs[0], messages=turns)], tmp_path / "taste", quick, report=lines.append)
    assert any(line.startswith(f"note: {plain} has no chat template") for line in lines)
    assert sum("with several turns for a base without a chat template, left out" in line for line in lines) == 1
    assert read_persrm(tmp_path / "taste").adapter is not None


def test_a_refused_command_does_not_refuse_the_corrected_one(base: Path, pairs: list[Pair], tmp_path: Path) -> None:
    short = replace(OPTIONS, epochs=0.2, head_epochs=0.0)
    with refused(OptionError, given="--modules w_proj"):
        fit(base, pairs, tmp_path / "taste", replace(short, modules="w_proj"))
    with refused(DataError, given="no pair is left"):
        fit(base, pairs, tmp_path / "taste", replace(short, max_prompt=3))
    assert not any(tmp_path.iterdir())
    fit(base, pairs, tmp_path / "taste", short)
    assert read_persrm(tmp_path / "taste").features == NAMES

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.tensor_names import canonical_name
from pad_runtime.errors import CheckpointError

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]
BOS = {"content": "<s>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
TEMPLATE = "{% for m in messages %}{{ m.content }}\r\n<|end|>{% endfor %}"


def save_tiny_tokenizer(folder: Path) -> None:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=280, special_tokens=SPECIAL, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the cat sat on the mat", "a dog and a cat"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="<|end|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)


def tiny_config(**options: object) -> LlamaConfig:
    sizes = {
        "vocab_size": 288, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 3, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(tie_word_embeddings=False)).to(torch.bfloat16)
    model.save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def folder(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


def edit_json(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def test_folder_gives_every_tensor_in_its_stored_dtype(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, state = saved
    checkpoint = open_checkpoint(folder)
    assert checkpoint.names == set(state)
    assert checkpoint.model_type == "llama"
    assert checkpoint.config.hidden_size == 24
    assert checkpoint.nbytes == (folder / "model.safetensors").stat().st_size
    assert not checkpoint.tied
    for name, value in state.items():
        assert checkpoint.shape(name) == tuple(value.shape)
        assert checkpoint.tensor(name).dtype == torch.bfloat16
        assert torch.equal(checkpoint.tensor(name), value)


def test_tensor_outlives_its_file_handle_and_never_writes_back(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    tensor = checkpoint.tensor("model.norm.weight")
    tensor.zero_()
    assert not torch.equal(checkpoint.tensor("model.norm.weight"), tensor)


def test_shards_give_the_same_tensors(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(saved[0])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    save_tiny_tokenizer(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.nbytes == sum(shard.stat().st_size for shard in shards)
    for name, value in saved[1].items():
        assert torch.equal(checkpoint.tensor(name), value.to(checkpoint.tensor(name).dtype))
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=r"shard .* is missing"):
        open_checkpoint(tmp_path)


def test_index_that_disagrees_with_its_shards(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(saved[0]).save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = next(iter(weight_map.values()))
    edit_json(index, weight_map={**weight_map, "model.extra": shard})
    with pytest.raises(CheckpointError, match=r"model\.extra is not in"):
        open_checkpoint(tmp_path)
    edit_json(index, weight_map={**weight_map, "model.norm.weight": "../elsewhere.safetensors"})
    with pytest.raises(CheckpointError, match="same folder"):
        open_checkpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        open_checkpoint(tmp_path)


def test_tied_embeddings(tmp_path: Path) -> None:
    LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path)
    save_tiny_tokenizer(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tied
    assert "lm_head.weight" not in checkpoint.names
    with pytest.raises(CheckpointError, match=r"no tensor lm_head\.weight"):
        checkpoint.tensor("lm_head.weight")


def test_stored_lm_head_decides_whether_embeddings_are_tied(folder: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert not open_checkpoint(folder).tied
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert open_checkpoint(folder).tied


@pytest.mark.parametrize(
    ("stored", "plain"),
    [
        ("layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_canonical_name(stored: str, plain: str) -> None:
    assert canonical_name(stored) == plain


def test_text_model_of_a_multimodal_checkpoint(folder: Path) -> None:
    from transformers import Gemma3Config, Gemma3TextConfig

    text = Gemma3TextConfig(
        vocab_size=288, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, eos_token_id=[1, 106],
    )  # fmt: skip
    Gemma3Config(text_config=text).save_pretrained(folder)
    save_file(
        {
            "model.language_model.embed_tokens.weight": torch.ones(288, 24),
            "model.language_model.norm.weight": torch.ones(24),
            "model.vision_tower.embed.weight": torch.ones(3),
        },
        folder / "model.safetensors",
    )
    checkpoint = open_checkpoint(folder)
    assert checkpoint.names == {"model.embed_tokens.weight", "model.norm.weight"}
    assert checkpoint.model_type == "gemma3_text"
    assert checkpoint.config.hidden_size == 24
    assert checkpoint.tied


def test_eos_token_ids_come_from_all_who_name_one(folder: Path) -> None:
    end = SPECIAL.index("<|end|>")
    assert open_checkpoint(folder).eos_token_ids == (2, end)
    edit_json(folder / "generation_config.json", eos_token_id=[7, 2])
    assert open_checkpoint(folder).eos_token_ids == (2, 7, end)
    edit_json(folder / "config.json", eos_token_id=None)
    assert open_checkpoint(folder).eos_token_ids == (7, 2, end)


def test_tokenizer_is_saved_with_what_a_runtime_needs(folder: Path, tmp_path: Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    damaged = Tokenizer.from_file(str(folder / "tokenizer.json"))
    damaged.enable_truncation(2)
    damaged.enable_padding(length=9)
    damaged.save(str(folder / "tokenizer.json"))
    checkpoint = open_checkpoint(folder)
    target = tmp_path / "bundle"
    target.mkdir()
    info = checkpoint.save_tokenizer(target)
    assert (info.bos_token, info.bos_id, info.eos_token, info.eos_id) == ("<s>", 1, "<|end|>", 3)
    assert info.chat_template == TEMPLATE
    assert (target / "chat_template.jinja").read_bytes().decode() == TEMPLATE
    text = "the cat and a dog<|end|> 2024"
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert tokenizer.encode(text).ids == reference(text).input_ids
    assert len(tokenizer.encode(text).ids) > 2
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert checkpoint.vocabulary() == reference.get_vocab()


@pytest.mark.parametrize("place", ["tokenizer_config", "named", "none"])
def test_chat_template_places(folder: Path, place: str) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    edit_json(folder / "tokenizer_config.json", chat_template={"tokenizer_config": "c", "named": named}.get(place))
    expected = {"tokenizer_config": "c", "named": "d", "none": None}[place]
    assert open_checkpoint(folder).tokenizer.info.chat_template == expected


def test_special_tokens_as_objects_and_outside_the_vocabulary(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", bos_token={"__type": "AddedToken", **BOS}, eos_token="<absent>")
    info = open_checkpoint(folder).tokenizer.info
    assert (info.bos_token, info.bos_id, info.eos_token) == ("<s>", 1, "<absent>")
    assert info.eos_id == AutoTokenizer.from_pretrained(folder).eos_token_id == 278
    edit_json(folder / "config.json", vocab_size=278)  # now the model has no row for it
    save_file({"model.embed_tokens.weight": torch.ones(278, 24)}, folder / "model.safetensors")
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert open_checkpoint(folder).tokenizer.info.eos_id is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
        (lambda f: edit_json(f / "config.json", model_type="unheard_of"), "model type that transformers knows"),
        (lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "awq"}), "quantised"),
        (lambda f: edit_json(f / "config.json", model_type="qwen2", num_hidden_layers=2**40), "num_hidden_layers is"),
        (lambda f: edit_json(f / "config.json", num_hidden_layers="2"), "num_hidden_layers is '2'"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: truncate(f / "model.safetensors"), "truncated"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "safe_serialization"),
        (lambda f: save_file({"other": torch.ones(1)}, f / "model.safetensors"), r"no model\.embed_tokens"),
    ],
)
def test_damaged_folder_is_refused(folder: Path, damage: object, message: str) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_damaged_tokenizer_is_refused_when_it_is_asked_for(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        open_checkpoint(folder).vocabulary()


def test_wrong_paths_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="is a file"):
        open_checkpoint(folder / "model.safetensors")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="this is an adapter"):
        open_checkpoint(adapter)

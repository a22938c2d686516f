"""Peak memory of pad-export over the size of its checkpoint, from the operating system's figure (budget: 2.5x).

A bf16 checkpoint of Llama-3.2-1B's shape with random weights, exported by `pad-export` in a process of its own, with
and without verification. Writes benchmarks/results/export_memory.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.common.llama_shapes import LLAMA_SHAPES
from benchmarks.common.records import RESULTS, versions, write_record
from benchmarks.export.process import run_export


def make_checkpoint(folder: Path) -> int:
    """Save random bf16 weights and a byte-level tokenizer; returns the weights' size in bytes."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_SHAPES["1b"], eos_token_id=0), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="1GB")
    tokenizer = Tokenizer(BPE(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        size = make_checkpoint(base)
        for precision in ("fp16", "fp32"):
            for extra in (("--no-verify",), ()):
                bundle = ("--base", str(base), "-o", f"{scratch}/bundle", "--precision", precision)
                peak = run_export(*bundle, "--quiet", *extra).peak
                rows.append(
                    {
                        "precision": precision,
                        "verified": not extra,
                        "peak_mib": peak >> 20,
                        "times_checkpoint": round(peak / size, 2),
                    }
                )
                print(rows[-1], flush=True)
    record = {
        "what": "pad-export of a random bf16 checkpoint of Llama-3.2-1B's shape",
        "checkpoint_mib": size >> 20,
        "versions": versions("pad-rt", "onnxruntime", "torch", "transformers"),
        "rows": rows,
    }
    write_record(RESULTS / "export_memory.json", record)


if __name__ == "__main__":
    main()

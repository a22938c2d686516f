"""What must hold on every device, whatever captures, kernels and arenas it has; what the CPU can show runs there too.

Cases of a device that is not here are skipped. PAD_DEVICE=cuda runs that device's alone, and fails where it is absent.
"""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks.gpu.devices import export_options, why_absent
from benchmarks.gpu.rows import PRECISIONS
from pad_export.plan import make_plan
from pad_export.verify.tolerance import difference
from pad_export.weights.stored import StoredWeights
from pad_rt import EncodedPrompt, GenerationConfig, GenerationResult, Generator, Preference
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward, plan_rows
from tests.support import tiny_bundles, tiny_models
from tests.support.guided_steps import Asked, open_slots, run, step_together
from tests.support.torch_oracle import TorchModel

# What computing in a type may change, relative to the largest logit; the weights are rounded alike on both sides, and
# bfloat16 has 3 bits less than float16. Another PersRM changes more than 1.
TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 24e-2}
ASKED = os.environ.get("PAD_DEVICE")
CASES = [(device, precision) for device in ([ASKED] if ASKED else PRECISIONS) for precision in PRECISIONS[device]]
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "head_dim": 32,
}
PROMPTS = [
    EncodedPrompt(base=(5, 9, 3, 40, 7), reward=(11, 2, 30, 8, 21, 6)),
    EncodedPrompt(base=(60, 33, 17), reward=(4, 71, 12, 90, 15, 62, 44, 13, 29)),
]
CONFIG = GenerationConfig(beta=1.25, top_k=6, max_new_tokens=24)
ONE, TWO = (Preference(weights={name: 1.0}) for name in ("one", "two"))

Logits = Callable[[Sequence[int]], torch.Tensor]  # token ids -> next-token logits [vocab]


@dataclass
class Models:
    """A base with two adapters, and the bundles of them that were asked for."""

    folder: Path
    bundles: dict[str, Path] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def adapters(self) -> list[Path]:
        return [self.folder / "one", self.folder / "two"]

    def bundle(self, device: str, precision: str, topology: str = "shared") -> Path:
        name = f"{device}-{precision}-{topology}"
        if name not in self.bundles:
            options: dict[str, Any] = {**export_options(device, precision), "topology": topology}
            output = self.folder / "bundles" / name
            self.bundles[name] = tiny_bundles.export(output, self.base, self.adapters, **options)
        return self.bundles[name]


@dataclass(frozen=True)
class Case:
    """A device, a precision, and where bundles of it come from."""

    device: str
    precision: str
    models: Models

    @property
    def bundle(self) -> Path:
        return self.models.bundle(self.device, self.precision)

    @property
    def tolerance(self) -> float:
        if self.precision == "int4":
            return TOLERANCE["fp32" if self.device == "cpu" else "fp16"]
        return TOLERANCE[self.precision]

    def load(self, topology: str = "shared") -> Generator:
        """On a CPU, blocks are multiplied in float arithmetic, so that they can be held to the tolerance of it."""
        bundle = self.models.bundle(self.device, self.precision, topology)
        low_memory = self.device == "cpu" and self.precision == "int4"
        return Generator(Bundle(bundle, device=self.device, num_threads=1, low_memory=low_memory))

    def oracles(self, topology: str = "shared") -> list[Logits]:
        """The base and each PersRM, read from the start by torch in float32, on weights rounded as the bundle's are."""
        folder = self.models.folder / f"{self.device}-{self.precision}-{topology}"
        base, persrm = (folder / name for name in ("base", "base" if topology == "shared" else "reward"))
        if not folder.exists():
            for trunk in {base, persrm}:
                self._round_trunk(trunk, topology)
            for adapter in self.models.adapters:
                self._round_adapter(adapter, folder / adapter.name)
        models = [TorchModel(base)]
        models += [TorchModel(persrm, adapter=folder / adapter.name) for adapter in self.models.adapters]
        return [lambda ids, model=model: model.logits(ids)[0] for model in models]

    def _round_trunk(self, folder: Path, topology: str) -> None:
        plan = make_plan(self.models.base, self.models.adapters, topology=topology)
        trunk = next(trunk for trunk in plan.trunks if trunk.name == folder.name)
        bundle = self.models.bundle(self.device, self.precision, topology)
        stored = StoredWeights(bundle, "step.onnx", trunk) if self.precision == "int4" else lambda _: None
        model = AutoModelForCausalLM.from_pretrained(self.models.base, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                weight = stored(name)
                parameter.copy_(self._rounded(parameter) if weight is None else weight)
        model.save_pretrained(folder)

    def _round_adapter(self, adapter: Path, folder: Path) -> None:
        shutil.copytree(adapter, folder)
        path = folder / "adapter_model.safetensors"
        save_file({name: self._rounded(tensor) for name, tensor in load_file(path).items()}, path)

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Through the type of the device's activations, which is also that of what is not in blocks."""
        on_gpu = "fp16" if self.device != "cpu" else "fp32"
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        return tensor.to(dtype[on_gpu if self.precision == "int4" else self.precision]).float()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made = Models(tmp_path_factory.mktemp("gpu"))
    tiny_models.make_base(made.base, "llama", seed=4, **SIZES)
    for seed, adapter in enumerate(made.adapters):
        tiny_models.make_adapter(adapter, made.base, seed=seed)
    return made


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, models: Models) -> Case:
    device, precision = request.param
    absent = why_absent(device)
    if absent:
        (pytest.fail if ASKED else pytest.skip)(f"no {device} here: {absent}")
    return Case(device, precision, models)


# -- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["shared", "pair"])
def test_a_device_weighs_what_the_oracle_weighs(case: Case, topology: str) -> None:
    """Ragged prompts and another PersRM for each sequence; every row logit, candidate, score and choice."""
    results = case.load(topology).generate_batch(PROMPTS, preferences=[ONE, TWO], config=CONFIG, trace=True)
    base, one, two = case.oracles(topology)
    for result, prompt, reward, other in zip(results, PROMPTS, (one, two), (two, one), strict=True):
        assert len(result.token_ids) == CONFIG.max_new_tokens
        assert _distance(result, prompt, base, reward) <= case.tolerance
        for wrong in (base, other):  # the controls: no PersRM, and the wrong one
            assert _distance(result, prompt, base, wrong) > case.tolerance


def _distance(result: GenerationResult, prompt: EncodedPrompt, base: Logits, reward: Logits) -> float:
    """How far a reply's trace is from PAD by two models: relative to the largest logit, over all steps."""
    worst = 0.0
    assert prompt.reward is not None
    for index, (trace, chosen) in enumerate(zip(result.trace, result.token_ids, strict=True)):
        ids = result.token_ids[:index]
        candidates = torch.from_numpy(trace.candidates)
        z_base, z_reward = base((*prompt.base, *ids)), reward((*prompt.reward, *ids))
        rows = torch.stack([z_base[candidates], z_reward[candidates]])
        scores = (1 - CONFIG.beta) * rows[0] + CONFIG.beta * rows[1]
        scale = max(1.0, float(rows.abs().max()))
        strength = scale * (abs(1 - CONFIG.beta) + CONFIG.beta)  # what a row is off by counts this much in a score
        worst = max(
            worst,
            difference(torch.from_numpy(trace.row_logits), rows),
            float((torch.from_numpy(trace.scores) - scores).abs().max()) / strength,
            # A choice compares two values, and each may be off.
            float(z_base.topk(len(candidates)).values[-1] - rows[0].min()) / scale / 2,
            float(scores.max() - scores[candidates == chosen][0]) / strength / 2,
        )
    return worst


# -- capture --------------------------------------------------------------------------------------------------------


def test_a_replay_is_the_eager_step(case: Case) -> None:
    """The same requests one after the other: another k, a longer prompt, a batch, and the first again."""
    captured, eager = (Bundle(case.bundle, device=case.device, capture=capture) for capture in (True, False))
    for guided in (True, False):
        first = _ask(captured, PROMPTS[:1], guided=guided)
        requests = [
            first,
            _ask(captured, PROMPTS[:1], guided=guided, top_k=3),
            _ask(captured, [_long(PROMPTS[0])], guided=guided),
            _ask(captured, PROMPTS, guided=guided),
            first,
        ]
        decoders = captured.decoder(), eager.decoder()
        for request in requests:
            replayed, plain = (run(decoder, request, CONFIG.max_new_tokens) for decoder in decoders)
            assert replayed == plain


def test_slots_that_come_and_go_are_slots_alone(case: Case) -> None:
    """A plain and two guided ones, of which one leaves, one goes back and one is forked, on captured steps."""
    bundle = Bundle(case.bundle, device=case.device, num_threads=1)
    decoder, third = bundle.decoder(), CONFIG.max_new_tokens // 3
    asked = [*_ask(bundle, PROMPTS, guided=True), *_ask(bundle, PROMPTS[:1], guided=False)]
    alone = [run(bundle.decoder(), [each], CONFIG.max_new_tokens)[0] for each in asked]
    slots = open_slots(decoder, asked)
    assert step_together(decoder, slots, third) == [ids[:third] for ids in alone]
    decoder.close(slots.pop(0))
    decoder.rewind(slots[0], {prompt: len(ids) + 1 for prompt, ids in enumerate(asked[1].prompts)})
    slots.append(decoder.fork(slots[1]))
    expected = [alone[1][1 : 1 + third], alone[2][third : 2 * third], alone[2][third : 2 * third]]
    assert step_together(decoder, slots, third) == expected


def _long(prompt: EncodedPrompt) -> EncodedPrompt:
    """A prompt that needs another KV cache, and so other addresses."""
    assert prompt.reward is not None
    return EncodedPrompt(base=tuple(prompt.base) * 40, reward=tuple(prompt.reward) * 20)


def _ask(bundle: Bundle, prompts: Sequence[EncodedPrompt], *, guided: bool, top_k: int = CONFIG.top_k) -> list[Asked]:
    asked = []
    for index, prompt in enumerate(prompts):
        rewards = [Reward(index, (1.0,), 1.0, tuple(prompt.reward or ()))] if guided else []
        plan = plan_rows(bundle.manifest, tuple(prompt.base), rewards, CONFIG.beta)
        asked.append(Asked.of(plan, new_tokens=CONFIG.max_new_tokens, top_k=top_k))
    return asked


# -- neighbours -----------------------------------------------------------------------------------------------------


def test_two_generators_do_not_disturb_each_other(case: Case) -> None:
    """Steps of two guided and one plain decoder take turns; each says what it says alone."""
    alone = []
    for prompt, guided in ((PROMPTS[0], True), (PROMPTS[1], True), (PROMPTS[0], False)):
        bundle = Bundle(case.bundle, device=case.device, num_threads=1)
        alone += run(bundle.decoder(), _ask(bundle, [prompt], guided=guided), CONFIG.max_new_tokens)
    assert alone[0] != alone[2], "the PersRM changed nothing: no test"
    first, second = (Bundle(case.bundle, device=case.device, num_threads=1) for _ in range(2))
    decoders = [first.decoder(), second.decoder(), second.decoder()]
    asked = [
        _ask(first, PROMPTS[:1], guided=True),
        _ask(second, PROMPTS[1:], guided=True),
        _ask(second, PROMPTS[:1], guided=False),
    ]
    for _ in range(2):  # the second time on captures that are there
        slots = [open_slots(decoder, each) for decoder, each in zip(decoders, asked, strict=True)]
        together: list[list[int]] = [[] for _ in decoders]
        for _ in range(CONFIG.max_new_tokens):
            for decoder, slot, tokens in zip(decoders, slots, together, strict=True):
                tokens.extend(decoder.step(slot).ids)
        assert together == alone
        for decoder, opened in zip(decoders, slots, strict=True):
            for slot in opened:
                decoder.close(slot)


def test_another_persrm_takes_effect_at_once_and_goes_again(case: Case) -> None:
    expected = [_tokens(case.load(), preference) for preference in (ONE, TWO, None)]
    assert len(set(expected)) == 3
    generator = case.load()
    for index in (0, 1, 0, 2, 1, 2, 0):
        assert _tokens(generator, (ONE, TWO, None)[index]) == expected[index]


def _tokens(generator: Generator, preference: Preference | None) -> tuple[int, ...]:
    prompt = PROMPTS[0] if preference else EncodedPrompt(base=PROMPTS[0].base)
    return generator.generate(prompt, preference=preference, config=CONFIG).token_ids


# -- memory ---------------------------------------------------------------------------------------------------------


def test_an_unloaded_bundle_gives_its_memory_back(case: Case, tmp_path: Path) -> None:
    """On a GPU the device's free memory after each of four loads; everywhere, that nothing holds on to a bundle."""
    bundle = _wide_bundle(case, tmp_path, hidden=64 if case.device == "cpu" else 512)
    kept, free = [], []
    for _ in range(4):
        opened = Bundle(bundle, device=case.device, num_threads=1)
        kept.append(weakref.ref(opened))
        generator = Generator(opened)
        for preference in (ONE, None):
            assert _tokens(generator, preference)
        del generator, opened
        gc.collect()
        free.append(_free_memory(case.device))
    assert not any(reference() for reference in kept)
    # The first load also makes CUDA's context and libraries, which stay.
    assert min(free[1:]) >= free[0] - 8 * 2**20, f"free bytes after each load: {free}"


def _wide_bundle(case: Case, folder: Path, *, hidden: int) -> Path:
    """Of 512: some 40 MB of fp16 weights, or 10 MB in 4 bits, so that what stays of three loads shows."""
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": 8, "head_dim": 64}
    tiny_models.make_base(folder / "base", "llama", seed=4, num_hidden_layers=4, **sizes)
    adapters = [folder / "one", folder / "two"]
    for seed, adapter in enumerate(adapters):
        tiny_models.make_adapter(adapter, folder / "base", seed=seed)
    return tiny_bundles.export(
        folder / "bundle", folder / "base", adapters, **export_options(case.device, case.precision)
    )


def _free_memory(device: str) -> int:
    """Bytes; 0 where there is no GPU."""
    if device == "cpu":
        return 0
    from cuda.bindings import runtime

    error, free, _ = runtime.cudaMemGetInfo()
    assert int(error) == 0
    return int(free)

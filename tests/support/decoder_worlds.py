"""Every kind of bundle that a decoder runs, tiny, and the people who ask of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward, RowPlan, plan_rows
from tests.support import fake_tensorrt, tiny_bundles, tiny_models
from tests.support.torch_oracle import TorchModel

BETA, MAX_LENGTH, MAX_TOP_K = 1.25, 320, 64
_SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
}
_ADAPTERS: dict[str, tuple[list[int], int]] = {  # layers that they touch, features of their heads
    "plain": ([0, 1, 2], 0),
    "official": ([0, 1, 2], 1),
    "many": ([0, 1, 2], 3),
    "upper": ([1, 2], 2),
    "top": ([2], 0),
}
# A person: rewards as (PersRM, number of the prompt that it reads, weights, scale); prompt 0 is the base's own.
Person = tuple[tuple[str, int, tuple[float, ...], float], ...]
NOBODY: Person = ()
_EVERYWHERE: tuple[Person, ...] = (
    NOBODY,
    (("plain", 1, (1.0,), 1.0),),
    (("plain", 0, (1.0,), -0.8),),
    (("official", 1, (1.0,), 1.0),),
    (("many", 1, (1.5, -0.75, 0.0), 1.0),),
    (("many", 1, (0.2, 0.4, -1.0), 1.0), ("many", 1, (0.5, 0.0, 0.5), 0.5)),
    (("plain", 1, (1.0,), 1.0), ("official", 2, (0.7,), 1.0), ("many", 0, (0.5, 0.5, 0.5), 1.0)),
)
_ABOVE: tuple[Person, ...] = (
    NOBODY,
    (("upper", 1, (1.0, -0.5), 1.0),),
    (("upper", 0, (0.3, 0.9), 1.0),),
    (("top", 1, (1.0,), 1.0),),
    (("upper", 0, (1.0, 0.0), 1.0), ("top", 0, (1.0,), 0.5)),
    (("upper", 1, (0.5, 0.5), 1.0), ("top", 2, (1.0,), 1.0), ("upper", 1, (0.0, 1.0), -0.5)),
)
_LONE: tuple[Person, ...] = (
    NOBODY,
    (("plain", 1, (1.0,), 1.0),),
    (("plain", 0, (1.0,), 1.0),),
    (("plain", 1, (1.0,), 0.6), ("plain", 2, (1.0,), -0.4)),
)
_CONTRAST: tuple[Person, ...] = tuple(
    tuple(("contrast", *rest) for _, *rest in person) for person in (*_LONE[:2], *_LONE[3:])
)


@dataclass(frozen=True)
class Kind:
    """How a bundle is exported, where it runs, and who asks of it."""

    persrms: tuple[str, ...]
    people: tuple[Person, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"


_ALL, _UPPER = ("plain", "official", "many"), ("upper", "top")
KINDS: dict[str, Kind] = {
    "shared": Kind(_ALL, _EVERYWHERE),
    "shared, backbone": Kind(_ALL, _EVERYWHERE, {"reference": "backbone"}),
    "shared, standard": Kind(_ALL, _EVERYWHERE, {"dialect": "standard"}),
    "upper layers": Kind(_UPPER, _ABOVE),
    "upper layers, standard, backbone": Kind(_UPPER, _ABOVE, {"dialect": "standard", "reference": "backbone"}),
    "pair": Kind(_ALL, _EVERYWHERE, {"topology": "pair"}),
    "pair, backbone": Kind(("plain",), _LONE, {"topology": "pair", "reference": "backbone"}),
    "pair, standard, merged": Kind(("plain",), _LONE, {"topology": "pair", "dialect": "standard"}),
    "contrast": Kind((), _CONTRAST),
    "int4": Kind(_UPPER, _ABOVE, {"precision": "int4"}),
    "int4, standard": Kind(_UPPER, _ABOVE, {"precision": "int4", "dialect": "standard", "activations": "fp32"}),
    "captured": Kind((*_ALL, *_UPPER), _EVERYWHERE, device="cuda"),
    "captured, pair": Kind(("plain",), _LONE, {"topology": "pair", "reference": "backbone"}, device="cuda"),
    "engines": Kind(_ALL, _EVERYWHERE, {"dialect": "standard"}, device="tensorrt"),
    "engines, upper layers": Kind(_UPPER, _ABOVE, {"dialect": "standard"}, device="tensorrt"),
}


@dataclass(frozen=True)
class WorldModels:
    """A base and adapters of it as folders, and torch's reading of them."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> WorldModels:
        tiny_models.make_base(folder / "base", "llama", seed=5, **_SIZES)
        for seed, (name, (layers, num_features)) in enumerate(_ADAPTERS.items()):
            tiny_models.make_adapter(
                folder / name,
                folder / "base",
                seed=seed,
                layers_to_transform=layers,
                target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
            )
            if num_features:
                tiny_models.make_head(folder / name, _SIZES["hidden_size"], d=num_features, seed=seed)
        return cls(folder)

    @cached_property
    def base(self) -> TorchModel:
        return TorchModel(self.folder / "base")

    @cached_property
    def persrms(self) -> dict[str, TorchModel]:
        heads = {name: self.folder / name if num_features else None for name, (_, num_features) in _ADAPTERS.items()}
        return {
            name: TorchModel(self.folder / "base", adapter=self.folder / name, head=head)
            for name, head in heads.items()
        }

    def export(self, name: str) -> Path:
        """The bundle of a kind, exported once."""
        kind, output = KINDS[name], self.folder / name.replace(", ", "-").replace(" ", "-")
        if not output.exists():
            tiny_bundles.export(
                output,
                self.folder / "base",
                [self.folder / persrm for persrm in kind.persrms],
                max_length=MAX_LENGTH,
                max_top_k=MAX_TOP_K,
                eos=[json.loads((self.folder / "base" / "config.json").read_text())["eos_token_id"]],
                **kind.options,
            )
            if kind.device == "tensorrt":
                fake_tensorrt.add_engines(output)
        return output


@dataclass(frozen=True)
class World:
    """A bundle of one kind on its device, and on the host.

    Attributes:
        name: of the kind.
        bundle: what is tested.
        host: the same bundle on the CPU: what a sequence decodes alone is taken from there.
        plans: rows and readings by person; prompts are numbered, and have no text.
        models: what it was made of.
        let_go: called between two cases.
    """

    name: str
    bundle: Bundle
    host: Bundle
    plans: tuple[RowPlan, ...]
    models: WorldModels
    let_go: Callable[[], object] = lambda: None

    @classmethod
    def load(cls, models: WorldModels, name: str, let_go: Callable[[], object] = lambda: None) -> World:
        """Open a kind's bundle; a simulated device is there already."""
        kind, folder = KINDS[name], models.export(name)
        bundle = Bundle(folder, device=kind.device, num_threads=None if kind.device == "tensorrt" else 1)
        host = bundle if kind.device == "cpu" else Bundle(folder, device="cpu", num_threads=1)
        return cls(name, bundle, host, tuple(plan_person(bundle, person) for person in kind.people), models, let_go)

    @property
    def rounds(self) -> bool:
        """Whether its kernels round what they multiply: the same numbers in another batch are a little different."""
        return KINDS[self.name].options.get("precision") == "int4"


def plan_person(bundle: Bundle, person: Person, *, beta: float = BETA) -> RowPlan:
    """Rows and readings of a person, over numbered prompts."""
    names = [info.name for info in bundle.manifest.persrms]
    rewards = [Reward(names.index(persrm), weights, scale, (prompt,)) for persrm, prompt, weights, scale in person]
    return plan_rows(bundle.manifest, (0,), rewards, beta)

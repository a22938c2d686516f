"""A trunk: one set of decoder weights, as a bundle is to have them."""

from __future__ import annotations

from dataclasses import dataclass

from pad_export.read.adapter import LoraAdapter
from pad_export.read.checkpoint import Checkpoint
from pad_export.read.spec import DecoderSpec
from pad_runtime.bundle import contract


@dataclass(frozen=True)
class Trunk:
    """One set of weights and how its rows may differ from them.

    The first `prompt_layers` run once for each prompt, whatever rows read it: all of them if there is no adapter.
    `merged` is added into the weights at export; `lora_sites` of the other layers take adapters as graph inputs, by
    row; `has_features` says that reward rows pass through the PersRMs' feature heads.
    """

    name: str
    checkpoint: Checkpoint
    spec: DecoderSpec
    prompt_layers: int
    merged: LoraAdapter | None = None
    lora_sites: tuple[str, ...] = ()
    has_features: bool = False

    @property
    def prefix(self) -> str:
        """Prefix of this trunk's inputs and outputs."""
        return contract.trunk_prefix(self.name)

    def site_sizes(self, site: str) -> tuple[int, int]:
        """(in_features, out_features) of one packed linear."""
        spec = self.spec
        attended = spec.num_heads * spec.head_dim
        return {
            "qkv": (spec.hidden_size, sum(spec.qkv_sizes)),
            "o": (attended, spec.hidden_size),
            "gate_up": (spec.hidden_size, 2 * spec.intermediate_size),
            "down": (spec.intermediate_size, spec.hidden_size),
        }[site]

    # -- names of its weights, in the weights file and in the graphs --------------------------------------------------

    def weight(self, name: str) -> str:
        """One of the trunk's weights."""
        return f"{self.name}/{name}"

    def linear(self, layer: int, site: str) -> str:
        """The matrix of a packed linear."""
        return self.weight(f"layers.{layer}.{site}.weight")

    def bias(self, layer: int, site: str) -> str:
        """The bias of a packed linear."""
        return self.weight(f"layers.{layer}.{site}.bias")

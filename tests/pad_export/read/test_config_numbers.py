"""Numbers of a configuration that no model has: refused in a line, before anything is sized by them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from pad_export.read.spec import read_spec
from pad_runtime.errors import CheckpointError
from tests.support.error_checks import refused

SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}


@pytest.mark.parametrize("name", ["head_dim", "hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"])
@pytest.mark.parametrize("value", [-1, 2**31, 2**63])
def test_counts(name: str, value: int) -> None:
    config = LlamaConfig(**SIZES)
    setattr(config, name, value)
    with refused(CheckpointError, given=f"{name} {value}", expected="1 to ", hint="again"):
        read_spec(config, tied=True)


@pytest.mark.parametrize("theta", [[], {}, "nothing", None])
def test_rotary_parameters(theta: Any) -> None:
    config = LlamaConfig(**SIZES)
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    with refused(CheckpointError, given="rotary parameters that no model has", hint="again"):
        read_spec(config, tied=True)


def test_the_control() -> None:
    assert read_spec(LlamaConfig(**SIZES), tied=True).num_layers == 2

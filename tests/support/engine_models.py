"""The sizes of the models and bundles that engines are built from, and the mark of tests that build some."""

from __future__ import annotations

import importlib.util

import pytest

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install 'pad-rt[tensorrt-rtx]'"
)
SIZES = {"hidden_size": 96, "intermediate_size": 128, "num_attention_heads": 6, "num_hidden_layers": 2}
LIMITS = {"max_length": 48, "max_batch": 3, "max_top_k": 20}

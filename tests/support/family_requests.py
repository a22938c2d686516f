"""Two prompts for the bundles of a tiny family, and how they are answered."""

from __future__ import annotations

from pad_rt import EncodedPrompt, GenerationConfig

PROMPTS = [EncodedPrompt([5, 17, 41, 8], [9, 8, 7, 6]), EncodedPrompt([20, 21, 22], [25, 3])]
CONFIG = GenerationConfig(top_k=6, max_new_tokens=20)

"""Two prompts for the bundles of a tiny family, who asks, and how they are answered."""

from __future__ import annotations

from pad_rt import EncodedPrompt, GenerationConfig, Preference

PROMPTS = [EncodedPrompt([5, 17, 41, 8], [9, 8, 7, 6]), EncodedPrompt([20, 21, 22], [25, 3])]
CONFIG = GenerationConfig(top_k=6, max_new_tokens=20)
BOTH = Preference(weights={"one": 1.0, "two": 0.5})

"""A guided reply with everything in it that could break a page, weighed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pad_rt import GenerationConfig, GenerationResult, Preference, Timing, Usage
from pad_rt.explain.page import make_page
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.decode.trace import SequenceTrace
from tests.support import tiny_tokenizers

HOSTILE = "</script><script>hit = 1</script><!--<script><img src=http://127.0.0.1:9/x onerror='hit = 1'>&amp;{{ 7*7 }}"
_UNTIMED = Timing(**dict.fromkeys(Timing.__dataclass_fields__, 0))
EGG = ("<0xF0>", "<0x9F>", "<0xA5>", "<0x9A>")  # tokens of a byte each
REPLY = ("the", " egg", "</script>", "<b>", "\n", "\n", *EGG, " &amp;", "\u2028", "é")
PROMPT = [{"role": "system", "content": "<i>Be</i> kind."}, {"role": "user", "content": HOSTILE}]
PREFERENCE = [(Preference(text=f'"{HOSTILE}"', weights={"cheerful": 1.0}), 0.5)]


@dataclass(frozen=True)
class Explained:
    """A reply and its page."""

    result: GenerationResult
    tokenizer: Tokenizer
    manifest: Manifest

    def page(self, **changes: Any) -> str:
        config = changes.pop("config", GenerationConfig(beta=1.5, top_k=4))
        given = {"prompt": PROMPT, "preferences": PREFERENCE, "manifest": self.manifest, **changes}
        return make_page(self.result, config=config, tokenizer=self.tokenizer, **given)


def explain_hostile(folder: Path, manifest: Manifest) -> Explained:
    """Every second token is not what the base alone had chosen; the last step chose the end of the turn.

    Args:
        folder: takes the tokenizer.
        manifest: of a bundle with one end of turn.
    """
    backend = tiny_tokenizers.byte_level()
    backend.add_tokens([piece for piece in REPLY if piece not in EGG])
    tokenizer = Tokenizer(tiny_tokenizers.save(backend, folder), bos_token="<s>", eos_token="</s>")
    id_of = {tokenizer.name(id): id for id in range(tokenizer.vocab_size)}
    ids = [id_of[piece] for piece in REPLY]
    (end,) = manifest.eos_token_ids
    generator = np.random.default_rng(3)
    trace = []
    for place, id in enumerate([*ids, end]):
        others = [other for other in (id_of["</script>"], id_of["<b>"], 40, 41) if other != id]
        base = np.array([5.0, 3.0, 2.0, 1.0], np.float32)
        candidates = np.array([others[0], id, *others[1:3]] if place % 2 else [id, *others[:3]])
        scores = base + np.where(candidates == id, 3.5, generator.normal(size=4) * 0.5).astype(np.float32)
        trace.append(SequenceTrace(candidates, base, np.zeros((1, 4), np.float32), scores))
    result = GenerationResult(tokenizer.decode(ids), tuple(ids), "stop", Usage(3, len(ids)), _UNTIMED, tuple(trace))
    return Explained(result, tokenizer, manifest)

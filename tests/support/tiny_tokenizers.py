"""Tokenizers of the kinds that supported models use, made in-process, with the vocabulary of a sentence or two."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the cheerful cook boils the egg, the egg boils",
    "naïve café, e\u0301 and a\u0308, 東京都の天気は晴れ, 北京天气晴朗",
    "👩‍🍳🥚 🎉🎉 ไทย",
]
SPECIAL = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2 / Llama-3 / Qwen style. No splitting by words, so that tokens straddle characters as large ones do."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool call>", "plain-added"])
    _add_bos(tokenizer)
    return tokenizer


def llama2() -> tokenizers.Tokenizer:
    """SentencePiece BPE with byte fallback, as Llama-2, Mistral and Phi-3 ship it."""
    tokenizer = _byte_fallback_bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_bos(tokenizer)
    return tokenizer


def gemma() -> tokenizers.Tokenizer:
    """SentencePiece BPE with byte fallback and no space put in front."""
    tokenizer = _byte_fallback_bpe()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _add_bos(tokenizer)
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    """Byte fallback with the Metaspace pre-tokenizer and decoder."""
    tokenizer = _byte_fallback_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    _add_bos(tokenizer)
    return tokenizer


def save(tokenizer: tokenizers.Tokenizer, folder: Path) -> Path:
    """Write tokenizer.json and give its path."""
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def _byte_fallback_bpe() -> tokenizers.Tokenizer:
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghiklmnopstuv,é東京"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "e"), ("g", "g"), ("▁e", "gg"), ("▁", "▁"), ("東", "京")]
    pieces += ["".join(merge) for merge in merges]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    return tokenizer


def _add_bos(tokenizer: tokenizers.Tokenizer) -> None:
    bos_id = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos_id)])

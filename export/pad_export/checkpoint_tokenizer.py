"""The tokenizer that comes with a checkpoint: tokenizer.json, its special tokens and its chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing

from pad_export.gguf_vocabulary import GgufVocabulary
from pad_export.json_file import read_object
from pad_runtime.errors import CheckpointError

_SLOW_FILES = ("tokenizer.model", "vocab.json")

_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class TokenizerInfo:
    """What a runtime must know beside tokenizer.json.

    Attributes:
        bos_token, eos_token: the tokens' text, None if the tokenizer names none.
        bos_id, eos_id: their ids, None if the vocabulary does not hold them.
        chat_template: the Jinja template of a conversation, None if there is none.
    """

    bos_token: str | None
    eos_token: str | None
    bos_id: int | None
    eos_id: int | None
    chat_template: str | None


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A tokenizer and what is known about it."""

    backend: Tokenizer
    info: TokenizerInfo

    def vocabulary(self) -> dict[str, int]:
        """Return the id of every token, added tokens included."""
        return self.backend.get_vocab(with_added_tokens=True)

    def save(self, folder: Path) -> TokenizerInfo:
        """Write tokenizer.json, and chat_template.jinja if there is a template, into an existing folder."""
        self.backend.save(str(folder / "tokenizer.json"))
        if self.info.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.info.chat_template, encoding="utf-8", newline="")
        return self.info


def has_tokenizer(folder: Path) -> bool:
    """Say whether a Hugging Face folder holds a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", *_SLOW_FILES))


def load_folder_tokenizer(folder: Path) -> CheckpointTokenizer:
    """Load the tokenizer of a Hugging Face folder.

    tokenizer.json is taken as it is. Only without one does transformers convert the slow tokenizer's files.

    Raises:
        CheckpointError: damaged files, or slow ones that cannot be converted.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer ({error})", hint="download it again") from error
    else:
        backend = _load_transformers_tokenizer(folder).backend_tokenizer
    # A length limit or padding left over from training would silently cut or fill prompts.
    backend.no_truncation()
    backend.no_padding()
    settings = _read_object(folder / "tokenizer_config.json")
    special = _read_object(folder / "special_tokens_map.json")
    bos = _token_text(settings.get("bos_token", special.get("bos_token")))
    eos = _token_text(settings.get("eos_token", special.get("eos_token")))
    return CheckpointTokenizer(backend, _info(backend, bos, eos, _folder_template(folder, settings)))


def load_gguf_tokenizer(path: Path, vocabulary: GgufVocabulary) -> CheckpointTokenizer:
    """Rebuild the tokenizer that a GGUF file describes.

    Byte-level BPE is built here: transformers' GGUF loading splits like GPT-2 where it does not know
    `tokenizer.ggml.pre`, and adds GPT-2's <|endoftext|> to vocabularies without it. Sentencepiece is left to it.

    Raises:
        CheckpointError: a kind of tokenizer that cannot be rebuilt faithfully.
    """
    splits = _pre_tokenizers()
    if vocabulary.kind == "gpt2" and vocabulary.pre in splits:
        backend = _byte_level_bpe(path, vocabulary, splits[vocabulary.pre])
    elif vocabulary.kind == "llama":
        backend = _load_transformers_tokenizer(path.parent, gguf_file=path.name).backend_tokenizer
    else:
        raise CheckpointError(
            f"{path} has the tokenizer {vocabulary.kind!r} with pre-tokenizer {vocabulary.pre!r}",
            expected=f"llama, or gpt2 with one of {', '.join(sorted(splits))}",
            hint="export from the model's safetensors folder",
        )
    if backend.get_vocab_size(with_added_tokens=True) != len(vocabulary.tokens):
        raise CheckpointError(
            f"the tokenizer rebuilt from {path} has {backend.get_vocab_size(with_added_tokens=True)} tokens",
            expected=f"{len(vocabulary.tokens)}",
            hint="export from the model's safetensors folder",
        )
    bos, eos = (_token_at(vocabulary, index) for index in (vocabulary.bos_id, vocabulary.eos_id))
    return CheckpointTokenizer(backend, _info(backend, bos, eos, vocabulary.chat_template or None))


def _byte_level_bpe(path: Path, vocabulary: GgufVocabulary, split: PreTokenizer) -> Tokenizer:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    try:
        backend = Tokenizer(BPE(vocab=ids, merges=merges))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} has a damaged vocabulary ({error})", hint="download it again") from error
    backend.pre_tokenizer = split
    backend.decoder = ByteLevelDecoder()
    # Control tokens (3) and user-defined ones (4) are matched whole; only the former are left out of decoded text.
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=False):
        if kind == 3:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == 4:
            backend.add_tokens([AddedToken(token, normalized=False)])
    bos = _token_at(vocabulary, vocabulary.bos_id)
    # Llama 3 files often leave the flag out, and llama.cpp then puts the first token for this splitting only.
    add_bos = vocabulary.pre in _LLAMA3_NAMES if vocabulary.add_bos is None else vocabulary.add_bos
    if add_bos and bos is not None:
        backend.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, vocabulary.bos_id)])
    return backend


def _token_at(vocabulary: GgufVocabulary, index: int | None) -> str | None:
    return vocabulary.tokens[index] if index is not None and 0 <= index < len(vocabulary.tokens) else None


def _pre_tokenizers() -> dict[str, PreTokenizer]:
    """Return the splitting that each known `tokenizer.ggml.pre` stands for."""

    def split(regex: str) -> PreTokenizer:
        return Sequence([Split(Regex(regex), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])

    gpt2 = ByteLevel(add_prefix_space=False, use_regex=True)
    llama3, qwen2 = split(_LLAMA3_SPLIT), split(_QWEN2_SPLIT)
    return {
        "default": gpt2,
        "gpt-2": gpt2,
        "smollm": Sequence([Digits(individual_digits=True), gpt2]),
        **dict.fromkeys(_LLAMA3_NAMES, llama3),
        "qwen2": qwen2,
        "deepseek-r1-qwen": qwen2,
    }


def _load_transformers_tokenizer(folder: Path, **options: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # conversion fails in many ways: missing libraries, damaged files, unknown classes
        raise CheckpointError(
            f"the tokenizer in {folder / options.get('gguf_file', '')} cannot be read ({error})",
            expected="a tokenizer.json",
            hint="save it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        ) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CheckpointError(
            f"the tokenizer in {folder} has no fast form", expected="a tokenizer.json", hint="use another checkpoint"
        )
    return tokenizer


def _info(backend: Tokenizer, bos: str | None, eos: str | None, template: str | None) -> TokenizerInfo:
    bos_id = None if bos is None else backend.token_to_id(bos)
    eos_id = None if eos is None else backend.token_to_id(eos)
    return TokenizerInfo(bos, eos, bos_id, eos_id, template)


def _folder_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the default chat template, from its own file or from tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        # Bytes, because reading as text would turn a template's \r\n into \n.
        return path.read_bytes().decode("utf-8")
    template = settings.get("chat_template") or _read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(value: Any) -> str | None:
    """Return a special token's text, which is stored bare or inside an AddedToken object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    return read_object(path, CheckpointError, hint="download it again") if path.is_file() else {}

"""The tokenizer that comes with a checkpoint: tokenizer.json, its special tokens and its chat template."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from pad_export.read.gguf.vocabulary import GgufVocabulary
from pad_export.read.json_file import read_object
from pad_export.read.tokenizer.declared_tokens import DeclaredTokens
from pad_export.read.tokenizer.peers import Peer, PlainPeer, auto_tokenizer, tokenizer_of_files
from pad_export.read.tokenizer.plain_tokenizer import PlainByteLevel, PlainSentencePiece
from pad_export.read.tokenizer.sentencepiece_file import read_model_file
from pad_export.read.tokenizer.sentencepiece_vocabulary import (
    SentencePieceVocabulary,
    TokenType,
    add_whole_tokens,
    put_first,
)
from pad_runtime.errors import CheckpointError

_MAX_IDS = 2**24
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# How text is split before byte-level BPE, by `tokenizer.ggml.pre`: one regular expression after the other.
_SPLITS = {
    "default": (_GPT2_SPLIT,),
    "gpt-2": (_GPT2_SPLIT,),
    "smollm": (r"\p{N}", _GPT2_SPLIT),
    **dict.fromkeys(_LLAMA3_NAMES, (_LLAMA3_SPLIT,)),
    "qwen2": (_QWEN2_SPLIT,),
    "deepseek-r1-qwen": (_QWEN2_SPLIT,),
}


@dataclass(frozen=True)
class TokenizerSettings:
    """What the runtime must know in addition to tokenizer.json.

    Attributes:
        bos_token, eos_token: text of the tokens, None if the tokenizer names none.
        bos_id, eos_id: ids of the tokens, None if the vocabulary lacks them.
        chat_template: the Jinja template of a conversation, None if there is none.
    """

    bos_token: str | None
    eos_token: str | None
    bos_id: int | None
    eos_id: int | None
    chat_template: str | None


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A tokenizer, its special tokens, and other readings of its files.

    Attributes:
        backend: the tokenizer that is written to the bundle's tokenizer.json.
        info: special tokens and chat template.
        peers: functions that load independent readings of the same files, the most important first.
    """

    backend: Tokenizer
    info: TokenizerSettings
    peers: tuple[Callable[[], Peer], ...] = ()

    def vocabulary(self) -> dict[str, int]:
        """Return the id of every token, added tokens included."""
        return self.backend.get_vocab(with_added_tokens=True)

    def save(self, folder: Path) -> TokenizerSettings:
        """Write tokenizer.json, and chat_template.jinja if there is a template, into an existing folder."""
        self.backend.save(str(folder / "tokenizer.json"))
        if self.info.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.info.chat_template, encoding="utf-8", newline="")
        return self.info


def has_tokenizer(folder: Path) -> bool:
    """Say whether a Hugging Face folder holds a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def load_folder_tokenizer(folder: Path, num_rows: int) -> CheckpointTokenizer:
    """Load the tokenizer of a Hugging Face folder.

    tokenizer.json is taken as it is; without one, the sentencepiece model in tokenizer.model is read. Only vocab.json
    with merges.txt is converted by transformers. Tokens that other files of the folder declare are added.

    Args:
        folder: holds the files.
        num_rows: rows of the model's embedding.

    Raises:
        CheckpointError: damaged files, or a tokenizer that cannot be converted to tokenizer.json.
    """
    path = folder / "tokenizer.json"
    declared = DeclaredTokens(folder)
    peers: tuple[Callable[[], Peer], ...] = ()
    if path.is_file():
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer ({error})", hint="download it again") from error
        _check_ids(backend, path)
        declared.add_to(backend, num_rows)
        peers = (partial(auto_tokenizer, folder), partial(tokenizer_of_files, folder))
    elif (folder / "tokenizer.model").is_file():
        add_bos = declared.settings.get("add_bos_token", True) is True
        vocabulary = read_model_file(folder / "tokenizer.model", add_bos=add_bos)
        backend = vocabulary.build()
        declared.add_to(backend, num_rows, on_raw_text=True)
        peers = (partial(_plain_sentencepiece, "plain Python from tokenizer.model", vocabulary, backend),)
    else:
        backend = _load_transformers_tokenizer(folder).backend_tokenizer
        _check_ids(backend, folder / "vocab.json")
    # A length limit or padding left over from training would silently cut or fill prompts.
    backend.no_truncation()
    backend.no_padding()
    template = _folder_template(folder, declared.settings)
    info = _info(backend, declared.named("bos_token"), declared.named("eos_token"), template)
    return CheckpointTokenizer(backend, info, peers)


def _check_ids(backend: Tokenizer, path: Path) -> None:
    """Refuse ids that no model has: writing a vocabulary, tokenizers takes memory for all ids up to the largest."""
    token, largest = max(backend.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if largest >= _MAX_IDS:
        raise CheckpointError(
            f"{path} gives {reprlib.repr(token)} the id {largest}",
            expected=f"ids below {_MAX_IDS:,}",
            hint="download it again",
        )


def load_gguf_tokenizer(path: Path, vocabulary: GgufVocabulary) -> CheckpointTokenizer:
    """Rebuild the tokenizer that a GGUF file describes, as llama.cpp reads it.

    transformers' own GGUF loading is not used: it splits like GPT-2 if it does not know `tokenizer.ggml.pre`, adds
    GPT-2's <|endoftext|> to vocabularies without it, and encodes leading spaces differently in sentencepiece ones.

    Raises:
        CheckpointError: a kind of tokenizer that cannot be rebuilt faithfully.
    """
    if vocabulary.kind == "gpt2" and vocabulary.pre in _SPLITS:
        backend = _byte_level_bpe(path, vocabulary)
        peer = partial(_plain_byte_level, vocabulary)
    elif vocabulary.kind == "llama":
        pieces = _sentencepiece(path, vocabulary)
        backend = _built(path, pieces.build)
        peer = partial(_plain_sentencepiece, "plain Python from the GGUF vocabulary", pieces, backend)
    else:
        raise CheckpointError(
            f"{path} has the tokenizer {vocabulary.kind!r} with pre-tokenizer {vocabulary.pre!r}",
            expected=f"llama, or gpt2 with one of {', '.join(sorted(_SPLITS))}",
            hint="export from the model's safetensors folder",
        )
    if backend.get_vocab_size(with_added_tokens=True) != len(vocabulary.tokens):
        raise CheckpointError(
            f"the tokenizer rebuilt from {path} has {backend.get_vocab_size(with_added_tokens=True)} tokens",
            expected=f"{len(vocabulary.tokens)}",
            hint="export from the model's safetensors folder",
        )
    bos, eos = (_token_at(vocabulary, index) for index in (vocabulary.bos_id, vocabulary.eos_id))
    return CheckpointTokenizer(backend, _info(backend, bos, eos, vocabulary.chat_template or None), (peer,))


def _byte_level_bpe(path: Path, vocabulary: GgufVocabulary) -> Tokenizer:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    whole = vocabulary.pre in _LLAMA3_NAMES
    backend = _built(path, lambda: Tokenizer(BPE(vocab=ids, merges=_merges(vocabulary), ignore_merges=whole)))
    backend.pre_tokenizer = _pre_tokenizer(vocabulary.pre)
    backend.decoder = ByteLevelDecoder()
    add_whole_tokens(backend, vocabulary.tokens, vocabulary.types)
    bos = _token_at(vocabulary, vocabulary.bos_id)
    # Llama 3 files often leave the flag out; llama.cpp then begins with BOS for this way of splitting only.
    add_bos = vocabulary.pre in _LLAMA3_NAMES if vocabulary.add_bos is None else vocabulary.add_bos
    if add_bos and bos is not None and vocabulary.bos_id is not None:
        put_first(backend, bos, vocabulary.bos_id)
    return backend


def _sentencepiece(path: Path, vocabulary: GgufVocabulary) -> SentencePieceVocabulary:
    if not len(vocabulary.tokens) == len(vocabulary.scores) == len(vocabulary.types):
        raise CheckpointError(
            f"{path} has {len(vocabulary.tokens)} tokens, {len(vocabulary.scores)} scores and "
            f"{len(vocabulary.types)} types",
            expected="one of each for every token",
            hint="download it again",
        )
    # llama.cpp's defaults for flags that are not given.
    add_bos = vocabulary.add_bos is not False and _token_at(vocabulary, vocabulary.bos_id) is not None
    return SentencePieceVocabulary(
        vocabulary.tokens,
        vocabulary.scores,
        vocabulary.types,
        add_space_prefix=vocabulary.add_space_prefix is not False,
        bos_id=vocabulary.bos_id if add_bos else None,
    )


def _built(path: Path, build: Callable[[], Tokenizer]) -> Tokenizer:
    try:
        return build()
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} has a damaged vocabulary ({error})", hint="download it again") from error


def _merges(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    return [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]


def _pre_tokenizer(name: str) -> PreTokenizer:
    splits = [Split(Regex(regex), behavior="isolated") for regex in _SPLITS[name]]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


def _plain_sentencepiece(name: str, vocabulary: SentencePieceVocabulary, backend: Tokenizer) -> Peer:
    declared = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
    return PlainPeer(name, PlainSentencePiece(vocabulary, declared))


def _plain_byte_level(vocabulary: GgufVocabulary) -> Peer:
    kinds = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    types = enumerate(zip(vocabulary.tokens, vocabulary.types, strict=False))
    whole = {token: index for index, (token, kind) in types if kind in kinds}
    parts = vocabulary.pre in _LLAMA3_NAMES
    plain = PlainByteLevel(vocabulary.tokens, _merges(vocabulary), whole, _SPLITS[vocabulary.pre], whole_parts=parts)
    return PlainPeer("plain Python from the GGUF vocabulary", plain)


def _token_at(vocabulary: GgufVocabulary, index: int | None) -> str | None:
    return vocabulary.tokens[index] if index is not None and 0 <= index < len(vocabulary.tokens) else None


def _load_transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # conversion fails in many ways: missing libraries, damaged files, unknown classes
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read ({error})",
            expected="a tokenizer.json",
            hint="save it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        ) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CheckpointError(
            f"the tokenizer in {folder} has no fast form", expected="a tokenizer.json", hint="use another checkpoint"
        )
    return tokenizer


def _info(backend: Tokenizer, bos: str | None, eos: str | None, template: str | None) -> TokenizerSettings:
    bos_id = None if bos is None else backend.token_to_id(bos)
    eos_id = None if eos is None else backend.token_to_id(eos)
    return TokenizerSettings(bos, eos, bos_id, eos_id, template)


def _folder_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the default chat template, from its own file or from tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:  # bytes, because reading as text would turn a template's \r\n into \n
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{path} is not UTF-8 ({error.reason} at byte {error.start})", hint="save it as UTF-8"
            ) from error
    template = settings.get("chat_template") or _read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    return read_object(path, CheckpointError, hint="download it again") if path.is_file() else {}

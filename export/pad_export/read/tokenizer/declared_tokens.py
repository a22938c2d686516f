"""Tokens that tokenizer_config.json, added_tokens.json or special_tokens_map.json add to tokenizer.json."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from pad_export.read.json_file import read_object
from pad_runtime.errors import CheckpointError

_CONFIG = "tokenizer_config.json"
_SPECIAL_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_MAX_DIGITS = 10  # digits of an id
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRA = ("additional_special_tokens", "extra_special_tokens")


class DeclaredTokens:
    """Tokens that a Hugging Face folder declares outside tokenizer.json, read as transformers reads them.

    `added_tokens_decoder` of tokenizer_config.json gives tokens with their ids and flags, and takes precedence over
    tokenizer.json. Without it, added_tokens.json gives the ids, and special_tokens_map.json is read in addition to
    tokenizer_config.json. Named tokens ("bos_token", "image_token") and lists of extra tokens are special.

    Raises:
        CheckpointError: a file that is not JSON, or an entry that is no token.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.settings = _read(folder / _CONFIG)
        self._decoder = self._object(_CONFIG, self.settings, "added_tokens_decoder")
        # If tokenizer_config.json has all tokens, transformers ignores the older files.
        self._special = {} if self._decoder else _read(folder / _SPECIAL_MAP)
        self._added = {} if self._decoder else _read(folder / _ADDED)

    def named(self, name: str) -> str | None:
        """Return the text of a named special token, such as "eos_token"; None if no file names one."""
        return _content(self.settings.get(name, _read(self._folder / _SPECIAL_MAP).get(name)))

    def add_to(self, backend: Tokenizer, num_rows: int, *, on_raw_text: bool = False) -> None:
        """Add the tokens that a tokenizer lacks, and the flags in which tokenizer_config.json differs from it.

        Args:
            backend: the tokenizer of tokenizer.json.
            num_rows: rows of the model's embeddings. A new token beyond them is left out: no model was trained on it.
            on_raw_text: match every new token before text is normalised, whatever its flags say.

        Raises:
            CheckpointError: a token that would get another id than its file says.
        """
        known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
        specials = {token.content for token in self._specials()}
        places, wanted = {}, []
        for index, token, file in self._with_ids():
            text = token.content
            if index >= num_rows and backend.token_to_id(text) is None:
                continue
            places[text] = (index, file)
            if text not in known or (file == _CONFIG and not _same(known[text], token)):
                token.special = token.special or text in specials
                wanted.append(_on_raw_text(token) if on_raw_text else token)
        backend.add_tokens(wanted)
        for text, (index, file) in places.items():
            if (found := backend.token_to_id(text)) != index:
                raise CheckpointError(
                    f"{self._folder / file} gives {reprlib.repr(text)} the id {index}, "
                    f"and beside tokenizer.json it gets {found}",
                    expected="the same id in both",
                    hint="load the tokenizer that the model was trained with and save it here again",
                )
        for token in self._specials():
            is_new = backend.token_to_id(token.content) is None
            if token.content not in known.keys() | places.keys() and not (
                is_new and backend.get_vocab_size() >= num_rows
            ):
                backend.add_special_tokens([token])

    def _with_ids(self) -> Iterator[tuple[int, AddedToken, str]]:
        """Every declared token as (id, token, its file), the lowest id first."""
        specials = {token.content for token in self._specials()}
        found: list[tuple[int, AddedToken, str]] = []
        for key, value in self._decoder.items():
            if not key.isdecimal() or len(key) > _MAX_DIGITS or not isinstance(value, dict):
                raise self._damaged(_CONFIG, f"the added token {reprlib.repr(key)}")
            found.append((int(key), self._token(_CONFIG, value), _CONFIG))
        for text, index in self._added.items():
            if not isinstance(index, int) or index < 0:
                raise self._damaged(_ADDED, f"the id {reprlib.repr(index)}")
            special = text in specials
            found.append((index, self._token(_ADDED, {"content": text, "special": special}), _ADDED))
        yield from sorted(found, key=lambda entry: entry[0])

    def _specials(self) -> Iterator[AddedToken]:
        """Every token that is named or listed as special."""
        for file, values in ((_SPECIAL_MAP, self._special), (_CONFIG, self.settings)):
            named = [value for key, value in values.items() if key.endswith("_token")]
            extra: list[Any] = []
            for key in _EXTRA:
                value = values.get(key) or []
                extra += value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            for value in [*named, *extra]:
                if _content(value):  # "add_bos_token" is a flag, and a name may have no token
                    yield self._token(file, value, special=True)

    def _token(self, file: str, value: str | dict[str, Any], *, special: bool = False) -> AddedToken:
        text = _content(value)
        if not text:
            raise self._damaged(file, f"the token {reprlib.repr(value)}")
        flags = {name: bool(value[name]) for name in _FLAGS if name in value} if isinstance(value, dict) else {}
        if special:
            flags["special"] = True
        return AddedToken(text, **flags)  # by default, normalized is the opposite of special

    def _object(self, file: str, values: dict[str, Any], key: str) -> dict[str, Any]:
        value = values.get(key) or {}
        if not isinstance(value, dict):
            raise self._damaged(file, f"{key} of type {type(value).__name__}")
        return value

    def _damaged(self, file: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._folder / file} has {what}", expected="tokens", hint="download it again")


def _on_raw_text(token: AddedToken) -> AddedToken:
    flags = {name: getattr(token, name) for name in _FLAGS}
    return AddedToken(token.content, **{**flags, "normalized": False})


def _same(one: AddedToken, other: AddedToken) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in _FLAGS)


def _content(value: Any) -> str | None:
    """Return a special token's text, which is stored bare or inside an AddedToken object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, CheckpointError, hint="download it again") if path.is_file() else {}

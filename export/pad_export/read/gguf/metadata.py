"""Values of a GGUF file's metadata, each checked for what it may be.

Every key under the architecture's name is used, or has a value that changes nothing, or is refused by name: a key that
is passed over could mean another model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from pad_export.read.gguf.header import GgufField
from pad_runtime.errors import CheckpointError

UNCLEAR = "export from the model's safetensors folder"
_LARGEST = 2**31 - 1
# Keys under the architecture's name that change nothing if they have these values; None: whatever the value.
_HARMLESS: dict[str, tuple[Any, ...] | None] = {
    "tensor_data_layout": ("Meta AI original pth",),  # the order of rotary rows that every llama file has
    "expert_count": (0,),
    "expert_used_count": (0,),
    "pooling_type": (0,),
    "attention.causal": (True,),
    "vocab_size": None,  # the embedding says how many there are
    "use_parallel_residual": None,  # early converters wrote true, whatever the model
    "rope.scaling.finetuned": None,
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}


class GgufMetadata:
    """The values of keys with a prefix; remembers which were read, so that the others can be refused."""

    def __init__(self, path: Path, fields: dict[str, GgufField], prefix: str = "") -> None:
        self._path, self._fields, self._prefix = path, fields, prefix
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """Return a number or string, None where there is none."""
        self._read.add(key)
        field = self._fields.get(self._prefix + key)
        if field is None:
            return None
        if field.count is not None:
            raise self.refuse(key, field, "one value for all layers")
        return field.contents()

    def text(self, key: str, default: str = "") -> str:
        """Return a string."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.refuse(key, value, "a string")
        return value or default

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a whole number; a key without a default must exist."""
        value = self._or_default(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            raise self.refuse(key, value, f"a whole number from {least} to {_LARGEST}")
        return value

    def positive(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """Return a positive number, or zero where that is allowed."""
        value = self._or_default(key, default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise self.refuse(key, value, "a positive number")
        return float(value)

    def token(self, key: str, *, below: int) -> int | None:
        """Return a token's id; None if the key is missing or, as in llama.cpp, if no token has that id."""
        value = self.get(key)
        if value is None or (isinstance(value, int) and value >= below):
            return None
        return self.whole(key, least=0)

    def flags(self, key: str) -> list[bool] | None:
        """Return an array of booleans, None where there is no array."""
        field = self._fields.get(self._prefix + key)
        if field is None or field.count is None:
            return None
        self._read.add(key)
        if field.kind != GGUFValueType.BOOL:
            raise self.refuse(key, field, "an array of booleans, or a whole number")
        values: list[bool] = field.contents()
        return values

    def check(self, key: str, value: float, *, what: str) -> None:
        """Refuse a key that exists with another value."""
        if self.get(key) not in (None, value):
            raise self.refuse(key, self.get(key), f"{what}, {value}")

    def check_rest(self) -> None:
        """Refuse keys that were not read, unless they are known to change nothing."""
        for name in self._fields:
            key = name.removeprefix(self._prefix)
            if not name.startswith(self._prefix) or key in self._read:
                continue
            harmless = _HARMLESS.get(key, ())
            value = self.get(key)
            if harmless is not None and value not in harmless:
                raise self.refuse(key, value, "a model without it")

    def refuse(self, key: str, value: Any, expected: str) -> CheckpointError:
        """Return the error that names a key and its value."""
        name = self._prefix + key
        if value is None:
            return CheckpointError(f"{self._path} lacks {name}", expected="a whole GGUF file", hint="download it again")
        if isinstance(value, GgufField):
            value = f"array of {value.count} {value.kind.name}"
        return CheckpointError(f"{self._path} has {name} = {value}", expected=expected, hint=UNCLEAR)

    def _or_default(self, key: str, default: float | None) -> Any:
        value = self.get(key)
        return default if value is None else value

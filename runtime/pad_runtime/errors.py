"""The one family of errors. Every message is one line: what was given, what was expected, what to do next."""

from __future__ import annotations


class PadError(Exception):
    """Base of every error PAD-RT raises on purpose.

    Args:
        given: what was found, named exactly (a path, an option and its value, a tensor and its shape).
        expected: what would have been right.
        hint: the next step for the person who reads it.
    """

    def __init__(self, given: str, *, expected: str = "", hint: str = "") -> None:
        parts = [given]
        if expected:
            parts.append(f"expected {expected}")
        if hint:
            parts.append(hint)
        super().__init__("; ".join(" ".join(part.split()) for part in parts))
        self.given = given
        self.expected = expected
        self.hint = hint


class OptionError(PadError):
    """An option or argument that does not exist, or a value outside its range."""


class PromptError(PadError):
    """A prompt that cannot be generated from: wrong type, empty, or too long for the bundle."""


class PreferenceError(PadError):
    """A preference that names an unknown feature, or that this bundle has no reward for."""


class BundleError(PadError):
    """A bundle that is missing, truncated, altered, or not what its manifest says."""


class HubError(PadError):
    """A repository on the Hugging Face hub that does not exist, or whose files cannot be fetched."""


class ConversationError(PadError):
    """A conversation that was closed, or that cannot be saved, or a file that holds none of this bundle."""


class TasteError(PadError):
    """A taste that cannot be saved, a file that holds none of this bundle's PersRMs, or a bundle without features."""


class CheckpointError(PadError):
    """A model folder or GGUF file that cannot be exported."""


class AdapterError(PadError):
    """A PersRM adapter or head that cannot be used, or that belongs to another base."""


class TokenizerMismatchError(PadError):
    """Base and PersRM disagree on the vocabulary, so a candidate id would mean two different things."""


class DataError(PadError):
    """Training data that cannot be used."""


class VerificationError(PadError):
    """An exported graph whose numbers differ from the torch models it came from."""


class DeviceError(PadError):
    """A device or execution provider that is not available here."""


class EngineError(PadError):
    """A TensorRT engine that cannot be built, or that was built for something else than what is here."""


class CancelledError(PadError):
    """A request that was cancelled before it ended."""


class QueueFullError(PadError):
    """Too many requests wait already."""


class OutOfMemoryError(PadError):
    """The weights or the KV cache do not fit in memory."""


def out_of_memory(size: int | None) -> OutOfMemoryError:
    """The error for a buffer of that many bytes; None: nobody says how many."""
    return OutOfMemoryError(
        "no memory for a buffer" + ("" if size is None else f" of {size / 2**20:,.0f} MiB"),
        hint="use shorter prompts, fewer new tokens or a smaller batch",
    )


def not_copied(what: str) -> PadError:
    """The error for what is to be pickled or copied and cannot be."""
    return PadError(
        f"{what} cannot be pickled or copied",
        hint="threads may share it; load the bundle by its path in every other process",
    )

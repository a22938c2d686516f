"""Named features: their wordings, and how replies with more and with less of them are sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_export.read.json_file import read_object
from pad_export.read.persrm_name import NAME
from pad_runtime.errors import OptionError

CONTRAST = "contrast"  # the scorer that needs styles, and nothing else


@dataclass(frozen=True)
class Style:
    """A way to make a model reply in some manner.

    Attributes:
        system: a system message.
        examples: questions and answers in that manner, the turns before the prompt. A small model heeds them far more
            than a system message.
    """

    system: str = ""
    examples: tuple[tuple[str, str], ...] = ()

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """The prompt behind the system message and the examples."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.examples:
            said += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*said, {"role": "user", "content": prompt}]


def style_of(prompt: str, styles: Sequence[tuple[Style, Style]]) -> tuple[Style, Style]:
    """The pair of styles of a prompt: by hash, so that the choice does not depend on what else is sampled."""
    return styles[int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % len(styles)]


@dataclass(frozen=True)
class PairSampling:
    """How `pad-train pairs` samples replies with more and with less of a feature.

    Attributes:
        scorer: what ranks replies, each with a factor; several are a sum. "MODULE:NAME" or "FILE.py:NAME" of a callable
            (prompts, replies) -> scores, "hf:DIR", a reward model, or "contrast": how much likelier the base finds a
            reply behind the style for more than behind that for less.
        veto: a callable as above, (prompts, replies) -> why nobody should want a reply; "" where somebody may.
        styles: pairs of styles (more, less); each prompt uses one pair. May be empty: then only the scorer selects.
        contrast: gamma in z(plain) +- gamma * (z(more) - z(less)), the logits from which tokens are drawn.
        samples: candidates in each block, of which the scorer keeps the best.
        block: tokens between two choices of the scorer.
        max_new_tokens: most tokens of a reply.
        min_gap: a pair's scores must differ by more than this.
        min_words: words that each reply of a pair must have.
        ends_early: make a third pair, of the usual reply and its first sentence; for features about when to stop.
    """

    scorer: tuple[tuple[str, float], ...]
    veto: str = ""
    styles: tuple[tuple[Style, Style], ...] = ()
    contrast: float = 2.0
    samples: int = 2
    block: int = 12
    max_new_tokens: int = 48
    min_gap: float = 0.0
    min_words: int = 4
    ends_early: bool = False


@dataclass(frozen=True)
class Feature:
    """A named feature.

    Attributes:
        more, less: wordings of a preference for more and for less of the feature; a PersRM learns to read them.
        sampling: how pairs of the base's replies are made; None if there are other pairs.
    """

    name: str
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    sampling: PairSampling | None = None


def read_features(path: Path) -> dict[str, Feature]:
    """Read a features file: {NAME: {"more": [...], "less": [...], "sampling": {"scorer": ..., ...}}}.

    Paths of scorers are relative to the features file.

    Raises:
        OptionError: no such file, no JSON object, or an entry that is not as above.
    """
    if not path.is_file():
        raise OptionError(f"--features {path} does not exist", expected="a JSON file", hint="check the path")
    features = {}
    for name, entry in read_object(path, OptionError, hint="correct it").items():
        where = f"{path}: {name}"
        if not NAME.fullmatch(name):
            raise OptionError(f"{where} is not a name", expected="letters, digits, '.', '_' and '-'")
        values = _only(where, entry, "more", "less", "sampling")
        features[name] = Feature(
            name,
            more=_texts(where, "more", values.get("more", [])),
            less=_texts(where, "less", values.get("less", [])),
            sampling=_read_sampling(path, where, values["sampling"]) if "sampling" in values else None,
        )
    if not features:
        raise OptionError(f"{path} names no feature", expected="at least one")
    return features


def _read_sampling(path: Path, where: str, entry: Any) -> PairSampling:
    values = _only(where, entry, *PairSampling.__dataclass_fields__)
    scorer = _scorers(path, where, values.get("scorer"))
    veto = _callable(path, where, "veto", values["veto"]) if "veto" in values else ""
    styles = values.get("styles", [])
    if CONTRAST in dict(scorer) and not styles:
        raise OptionError(
            f"{where}: no styles for the scorer contrast", expected='"styles": [{"more": ..., "less": ...}]'
        )
    if not isinstance(styles, list):
        raise OptionError(f"{where}: styles is {styles!r}", expected='a list of {"more": {...}, "less": {...}}')
    counts = {
        name: _count(where, name, values[name])
        for name in ("samples", "block", "max_new_tokens", "min_words")
        if name in values
    }
    ends_early = values.get("ends_early", False)
    if not isinstance(ends_early, bool):
        raise OptionError(f"{where}: ends_early is {ends_early!r}", expected="true or false")
    return PairSampling(
        scorer,
        veto,
        styles=tuple(_read_styles(where, style) for style in styles),
        contrast=_number(where, "contrast", values.get("contrast", PairSampling.contrast), lowest=0.0),
        min_gap=_number(where, "min_gap", values.get("min_gap", PairSampling.min_gap), lowest=0.0),
        ends_early=ends_early,
        **counts,
    )


def _scorers(path: Path, where: str, value: Any) -> tuple[tuple[str, float], ...]:
    """A name, or names with their factors in a sum."""
    factors = value.items() if isinstance(value, dict) and value else [(value, 1.0)]
    return tuple(
        (_callable(path, where, "scorer", name), _number(where, f"factor of {name}", factor, lowest=1e-6))
        for name, factor in factors
    )


def _callable(path: Path, where: str, key: str, value: Any) -> str:
    """A scorer's or a veto's name, a relative path in it taken from the features file's folder."""
    model = key == "scorer" and isinstance(value, str) and value.startswith("hf:")
    if key == "scorer" and value == CONTRAST:
        return CONTRAST
    if not isinstance(value, str) or ":" not in value or (value.startswith("hf:") and not model):
        scorers = "MODULE:NAME, FILE.py:NAME, hf:DIR or contrast"
        raise OptionError(
            f"{where}: {key} is {value!r}", expected=scorers if key == "scorer" else "MODULE:NAME or FILE.py:NAME"
        )
    if model and value.startswith("hf:."):
        return f"hf:{path.resolve().parent / value[3:]}"
    return f"{path.resolve().parent / value}" if ".py:" in value else value


def _read_styles(where: str, entry: Any) -> tuple[Style, Style]:
    values = _only(where, entry, "more", "less")
    styles = []
    for side in ("more", "less"):
        style = _only(where, values.get(side, {}), "system", "examples")
        system = style.get("system", "")
        if not isinstance(system, str):
            raise OptionError(f"{where}: system is {system!r}", expected="text")
        styles.append(Style(system, _read_examples(where, style.get("examples", []))))
    return styles[0], styles[1]


def _read_examples(where: str, entry: Any) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(pair) if isinstance(pair, list) else () for pair in entry] if isinstance(entry, list) else [()]
    if not all(len(pair) == 2 and all(isinstance(text, str) and text.strip() for text in pair) for pair in pairs):
        raise OptionError(f"{where}: examples is {entry!r}", expected='a list of ["QUESTION", "ANSWER"]')
    return tuple((question, answer) for question, answer in pairs)


def _only(where: str, entry: Any, *keys: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise OptionError(f"{where} is {entry!r}", expected=f"an object with {', '.join(keys)}")
    for key in entry:
        if key not in keys:
            raise OptionError(f"{where} has the unknown key {key}", expected=f"only {', '.join(keys)}")
    return entry


def _texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise OptionError(f"{where}: {key} is {value!r}", expected="a list of texts")
    return tuple(value)


def _number(where: str, key: str, value: Any, *, lowest: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value < 1e6:
        raise OptionError(f"{where}: {key} is {value!r}", expected=f"a number of at least {lowest:g}")
    return float(value)


def _count(where: str, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**20:
        raise OptionError(f"{where}: {key} is {value!r}", expected="a positive integer")
    return value

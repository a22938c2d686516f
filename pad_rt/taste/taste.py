"""A person's taste: which replies were preferred, and what feature weights that tells."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pad_rt.generator import Generator
from pad_rt.preference import Preference
from pad_rt.taste.features import persrms_digest, taste_features
from pad_rt.taste.posterior import Posterior
from pad_rt.taste.prior import Prior
from pad_rt.taste.question import Answer, Question
from pad_rt.taste.reply_pool import ReplyPool
from pad_rt.taste.saved_taste import SavedTaste
from pad_rt.text.prompt import Prompt, ReplyLike
from pad_runtime.errors import OptionError, TasteError

MAX_ANSWERS = 1000
HALF_LIFE = 200.0
LEAST_BITS = 0.02
MAX_USUAL = 256  # tokens of the base's own reply, which a rated one is held against


@dataclass(frozen=True)
class Estimate:
    """What is believed of one feature weight: its mean, and the interval that holds it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How well a taste foretells each of its own answers from all the others.

    Attributes:
        right: share of the answers that it foretells.
        expected: share that it expects to foretell. Much above `right`: the person wants what the features do not say.
    """

    right: float
    expected: float


class Taste:
    """Learns a person's feature weights from choices: no model is trained, and no text is kept.

    R = sum_i w_i phi_i is linear in w, so each choice between two replies tells of w; see `pad_rt.taste.posterior`. The
    weights that it gives are the mean of w of length 1: of length near 0 after few answers, near 1 after many, so that
    the reward grows with what is known. Not for several threads at once.

    Args:
        generator: of the bundle whose PersRMs rate replies.
        prior: what is believed of people who have not answered.
        half_life: answers after which an answer counts half, as people change; None: all count alike, and their order
            does not matter. Only the last 1,000 answers count.
        answers: to begin with, as the property `answers` of another taste gives them.

    Raises:
        TasteError: the bundle has no features.
        OptionError: a half-life that is not above 0, or a prior or answers of other features.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        prior: Prior | None = None,
        half_life: float | None = HALF_LIFE,
        answers: Sequence[Sequence[float]] = (),
    ) -> None:
        if half_life is not None and not 0 < half_life < math.inf:
            raise OptionError(f"half_life {half_life!r}", expected="a number of answers above 0, or None")
        self._generator, self._half_life = generator, half_life
        self._features = taste_features(generator.manifest)
        self._prior = prior or Prior()
        self._mean, self._spread = self._prior.arrays(self._features)
        if any(len(answer) != len(self._features) for answer in answers):
            raise OptionError("answers of other features", expected=", ".join(self._features))
        self._answers = [tuple(answer) for answer in answers][-MAX_ANSWERS:]
        self._asked: set[tuple[float, ...]] = set()
        self._fitted: Posterior | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """What it is about."""
        return self._features

    @property
    def num_answers(self) -> int:
        """Choices that it learned from and has not forgotten."""
        return len(self._answers)

    @property
    def answers(self) -> tuple[tuple[float, ...], ...]:
        """phi of the better reply less that of the other, by feature, for each of these choices; the oldest first."""
        return tuple(self._answers)

    # -- learning -----------------------------------------------------------------------------------------------------

    def prefer(self, prompt: Prompt, better: ReplyLike, worse: ReplyLike, *, ended: bool = True) -> bool:
        """Learn that one reply is better than another.

        Args:
            prompt: that both reply to, as for `Generator.generate`.
            better, worse: as text or token ids.
            ended: whether the end of the turn belongs to both; False for replies that were cut. A base without an end
                of turn has none.

        Returns:
            False where both are alike, which tells nothing.

        Raises:
            PromptError: a prompt or reply that cannot be scored.
            OutOfMemoryError, DeviceError, BundleError: as `Generator.score`.
        """
        if better == worse:
            return False
        return self._learn(self._phi(prompt, better, ended) - self._phi(prompt, worse, ended))

    def rate(self, prompt: Prompt, reply: ReplyLike, verdict: int) -> bool:
        """Learn that a reply is better (+1) or worse (-1) than what the base alone would have replied.

        Returns:
            False where it is the base's own reply.

        Raises:
            OptionError: another verdict.
            PromptError, OutOfMemoryError, DeviceError, BundleError: as `Generator.score`.
        """
        if verdict not in (1, -1) or isinstance(verdict, bool):
            raise OptionError(f"verdict {verdict!r}", expected="1 or -1")
        room = self._generator.room(prompt) - 1  # the end of the turn is scored, too
        own = self._generator.generate(prompt, config={"max_new_tokens": max(1, min(MAX_USUAL, room))})
        if not own.token_ids or reply in (own.text, own.token_ids):
            return False
        usual = self._phi(prompt, own.token_ids, own.finish_reason == "stop")
        return self._learn(verdict * (self._phi(prompt, reply, True) - usual))

    def edit(self, prompt: Prompt, before: ReplyLike, after: ReplyLike) -> bool:
        """Learn from a reply that the person rewrote: what came of it is better. As `prefer`."""
        return self.prefer(prompt, after, before)

    def ask(
        self,
        prompts: Sequence[Prompt] | ReplyPool,
        *,
        least_bits: float = LEAST_BITS,
        skip: Collection[str] = (),
    ) -> Question | None:
        """The pair of replies whose choice would tell most, by mutual information; no pair twice.

        Args:
            prompts: to which the bundle writes replies for unlike people, or replies that it has written.
            least_bits: what an answer must tell.
            skip: ids of questions that are not to be asked.

        Returns:
            None where no answer would tell that much.

        Raises:
            OptionError: a pool of other features.
            PromptError: as `Generator.generate`.
        """
        pool = prompts if isinstance(prompts, ReplyPool) else ReplyPool.write(self._generator, prompts)
        if pool.features != self._features:
            raise OptionError(f"a pool of {', '.join(pool.features)}", expected=", ".join(self._features))
        pairs = [(one.prompt, first, second) for one in pool.prompts for first, second in one.pairs()]
        if not pairs:
            return None
        differences = np.array([first.phi for _, first, _ in pairs]) - np.array([second.phi for *_, second in pairs])
        bits = self._posterior().information(differences)
        known = self._asked.union(self._answers, (tuple(-value for value in answer) for answer in self._answers))
        for at in np.argsort(-bits, kind="stable"):
            if bits[at] < least_bits:
                break
            prompt, first, second = pairs[at]
            question = Question.of(prompt, first, second, float(bits[at]))
            if question.difference not in known and question.id not in skip:
                self._asked.add(question.difference)
                return question
        return None

    def answer(self, question: Question, choice: Answer | None) -> bool:
        """Learn from the answer to a question; None is no answer, and nothing is learned.

        Raises:
            OptionError: another answer, or a question of other features.
        """
        if choice not in ("a", "b", None):
            raise OptionError(f"answer {choice!r}", expected="'a', 'b' or None")
        if len(question.difference) != len(self._features):
            raise OptionError("a question of other features", expected=", ".join(self._features))
        if choice is None:
            return False
        return self._learn((1 if choice == "a" else -1) * np.array(question.difference))

    def forget(self) -> None:
        """Forget all answers."""
        self._answers, self._fitted = [], None
        self._asked = set()

    # -- what is known ------------------------------------------------------------------------------------------------

    def preference(self, strength: float = 1.0) -> Preference:
        """The person's preference: the mean of the feature weights of length 1, times the strength.

        Raises:
            OptionError: a strength below 0 or not finite.
        """
        if not 0 <= strength < math.inf:
            raise OptionError(f"strength {strength!r}", expected="a number of 0 or more")
        weights = strength * self._posterior().mean()
        return Preference(weights=dict(zip(self._features, weights.tolist(), strict=True)))

    def uncertainty(self, level: float = 0.9) -> dict[str, Estimate]:
        """By feature, the mean of its weight, and the interval that holds it with this probability; w has length 1.

        Raises:
            OptionError: a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise OptionError(f"level {level!r}", expected="a probability between 0 and 1")
        posterior = self._posterior()
        bounds = zip(posterior.mean().tolist(), *(bound.tolist() for bound in posterior.interval(level)), strict=True)
        return {name: Estimate(*values) for name, values in zip(self._features, bounds, strict=True)}

    def agreement(self) -> Agreement | None:
        """How well it foretells each answer from the others; None with fewer than two."""
        if len(self._answers) < 2:
            return None
        foretold = self._posterior().foretold(*self._evidence())
        return Agreement(float(np.mean(foretold > 0.5)), float(np.mean(np.maximum(foretold, 1 - foretold))))

    # -- keeping ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write it as one JSON file, whole or not at all; a file that is there is replaced.

        Raises:
            TasteError: the file cannot be written.
        """
        SavedTaste(
            base=self._generator.manifest.base,
            features=list(self._features),
            persrms=persrms_digest(self._generator.manifest),
            half_life=self._half_life,
            mean=dict(self._prior.mean),
            spread=dict(self._prior.spread),
            answers=[list(answer) for answer in self.answers],
        ).write(Path(path))

    @classmethod
    def load(cls, path: str | Path, generator: Generator, *, retrained: bool = False) -> Taste:
        """Read a saved taste; what it gives is what it gave before.

        Args:
            retrained: also take a taste of PersRMs with the same features and other weights.

        Raises:
            TasteError: there is none, it is altered, or it is of other PersRMs.
        """
        saved, features = SavedTaste.read(Path(path)), taste_features(generator.manifest)
        if tuple(saved.features) != features:
            raise TasteError(
                f"{path} is a taste of the features {', '.join(saved.features)}",
                expected=f"this bundle's, {', '.join(features)}",
                hint="load the bundle that it was learned with",
            )
        if saved.persrms != persrms_digest(generator.manifest) and not retrained:
            raise TasteError(
                f"{path} was learned with other weights of the PersRM, of {saved.base}",
                expected="the PersRM that it was learned with",
                hint="ask anew, or load it with retrained=True",
            )
        prior = Prior(saved.mean, saved.spread)
        return cls(generator, prior=prior, half_life=saved.half_life, answers=saved.answers)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _phi(self, prompt: Prompt, reply: ReplyLike, ended: bool) -> npt.NDArray[np.float64]:
        """Of each feature, summed over the reply's tokens [d]; a base without an end of turn ends none."""
        ended = ended and bool(self._generator.manifest.eos_token_ids)
        return np.array(list(self._generator.score(prompt, reply, ended=ended).features.values()), np.float64)

    def _learn(self, difference: npt.NDArray[np.float64]) -> bool:
        if not difference.any():
            return False
        self._answers = [*self._answers, tuple(difference.tolist())][-MAX_ANSWERS:]
        self._fitted = None
        return True

    def _posterior(self) -> Posterior:
        if self._fitted is None:
            self._fitted = Posterior.fit(*self._evidence(), self._mean, self._spread)
        return self._fitted

    def _evidence(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Differences [n, d], and how much each counts [n]."""
        differences = np.array(self._answers, np.float64).reshape(-1, len(self._features))
        ages = np.arange(len(differences))[::-1]
        counts = np.ones(len(ages)) if self._half_life is None else 0.5 ** (ages / self._half_life)
        return differences, counts

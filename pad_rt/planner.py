"""Prompts and preferences as rows: what each row reads, and which PersRMs a preference calls on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pad_rt.preference import Preference, PreferenceLike, normalize_preferences
from pad_rt.text.prompt import EncodedPrompt, Prompt, PromptEncoder
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import PreferenceError
from pad_runtime.rows.plan import Reward, RowPlan, plan_rows
from pad_runtime.rows.sequence import MAX_STRENGTH
from pad_runtime.score.request import RewardPrompt

_MAX_WEIGHT = {
    "float32": MAX_STRENGTH,
    "float16": 100.0,
    "bfloat16": MAX_STRENGTH,
}  # a feature head mixes hidden states in the bundle's precision


class RowPlanner:
    """Plans the rows of one sequence for one bundle."""

    def __init__(self, manifest: Manifest, encoder: PromptEncoder) -> None:
        self._manifest, self._encoder = manifest, encoder

    def plan(
        self,
        prompt: Prompt,
        preference: PreferenceLike,
        *,
        beta: float,
        base_sees_preference: bool,
        template_args: Mapping[str, Any],
    ) -> RowPlan:
        """Rows and readings, the base's first; without a preference that is all.

        Raises:
            PromptError: the prompt is empty, malformed, or refused by the chat template.
            OptionError: a template argument that the chat template does not read.
            PreferenceError: an unknown feature, words where the PersRM has no place for them, or a strength that
                float32 cannot hold.
        """
        rewards = self.rewards(prompt, preference, template_args)
        worded = [wish for wish, _ in normalize_preferences(preference) if wish.text]
        if base_sees_preference and worded and not isinstance(prompt, EncodedPrompt):
            reader = next(iter(self._weights(worded[0])))  # reads words, or its reward's prompt would have been refused
            template = self._manifest.persrms[reader].prompt_template
            words = "; ".join(str(wish.text) for wish in worded)
            base = self._encoder.encode_reward(prompt, words, template, template_args)
        else:
            base = self._encoder.encode(prompt, template_args)
        plan = plan_rows(self._manifest, tuple(base), rewards, beta)
        _check_strengths(plan, _MAX_WEIGHT[self._manifest.float_type])
        return plan

    def rewards(
        self, prompt: Prompt, preference: PreferenceLike, template_args: Mapping[str, Any]
    ) -> tuple[Reward, ...]:
        """PersRMs that a preference calls on, each with its weights and what it reads; none without a preference.

        Raises:
            PromptError, OptionError, PreferenceError: as `plan`.
        """
        pairs = normalize_preferences(preference)
        if isinstance(prompt, EncodedPrompt) and prompt.reward is not None and not pairs:
            pairs = ((Preference(weights=self._default_weights()), 1.0),)  # the ids carry the preference
        return tuple(
            Reward(persrm, weights, scale, self._reward_prompt(prompt, wish.text, persrm, template_args))
            for wish, scale in pairs
            for persrm, weights in self._weights(wish).items()
        )

    def unguided(self, prompt: Prompt, template_args: Mapping[str, Any]) -> tuple[RewardPrompt, ...]:
        """Every PersRM of the bundle, and what it reads of a prompt without a preference.

        None for a contrast, which says nothing without words, and for an `EncodedPrompt` without reward ids.

        Raises:
            PromptError, OptionError: as `plan`.
        """
        if isinstance(prompt, EncodedPrompt) and prompt.reward is None:
            return ()
        return tuple(
            RewardPrompt(index, self._reward_prompt(prompt, None, index, template_args))
            for index, info in enumerate(self._manifest.persrms)
            if not self._manifest.is_contrast(info)
        )

    def _weights(self, preference: Preference) -> dict[int, tuple[float, ...]]:
        """Preference weights by PersRM: features find theirs; words alone go to the first that reads words."""
        persrms = self._manifest.persrms
        if not preference.weights:
            reader = next((index for index, persrm in enumerate(persrms) if persrm.takes_text), 0)
            return {reader: tuple(persrms[reader].default_weights)}
        known = {feature: index for index, persrm in enumerate(persrms) for feature in persrm.features}
        for feature in preference.weights:
            if feature not in known:
                raise PreferenceError(
                    f"unknown feature '{feature}'", expected=f"one of {', '.join(known)}, the features of this bundle"
                )
        return {
            index: tuple(preference.weights.get(feature, 0.0) for feature in persrms[index].features)
            for index in sorted({known[feature] for feature in preference.weights})
        }

    def _default_weights(self) -> dict[str, float]:
        first = self._manifest.persrms[0]
        return dict(zip(first.features, first.default_weights, strict=True))

    def _reward_prompt(
        self, prompt: Prompt, words: str | None, persrm: int, template_args: Mapping[str, Any]
    ) -> tuple[int, ...]:
        """What a reward row reads, in its PersRM's own form."""
        info = self._manifest.persrms[persrm]
        if self._manifest.is_contrast(info) and not words and not isinstance(prompt, EncodedPrompt):
            raise PreferenceError(
                "a preference without text for a bundle without a PersRM",
                expected="words",
                hint="this bundle contrasts the base with and without them",
            )
        if words and not info.takes_text:
            raise PreferenceError(
                f"a preference in words for PersRM '{info.name}', which was trained without",
                expected=f"weights for {', '.join(info.features)}",
            )
        return tuple(self._encoder.encode_reward(prompt, words, info.prompt_template, template_args))


def _check_strengths(plan: RowPlan, max_weight: float) -> None:
    """What lies beyond would make scores infinite."""
    check_strength(
        [reading.strength for reading in plan.readings],
        MAX_STRENGTH,
        hint="it is the product of beta and the weights: lower them",
    )
    check_strength(
        [weight for reading in plan.readings for weight in reading.weights],
        max_weight,
        hint="lower the weights and raise beta instead",
    )


def check_strength(values: Iterable[float], limit: float, *, hint: str) -> None:
    """Refuse factors of logits beyond a limit.

    Raises:
        PreferenceError: one of them, NaN too.
    """
    beyond = [value for value in values if not abs(value) <= limit]
    if beyond:
        raise PreferenceError(f"a preference of strength {beyond[0]:g}", expected=f"at most {limit:g}", hint=hint)

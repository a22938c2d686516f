"""Scores of replies in words or ids, behind any prompt and under any preference."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_rt.config import GenerationConfig
from pad_rt.planner import RowPlanner, check_strength
from pad_rt.preference import PreferenceLike
from pad_rt.request import asks_for_reward
from pad_rt.score.reply_score import ReplyScore, TokenScore
from pad_rt.text.prompt import Prompt, PromptEncoder, ReplyLike, continues_reply
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import DeviceError, OptionError, PromptError
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward
from pad_runtime.rows.sequence import MAX_STRENGTH
from pad_runtime.score.request import ReplyScores, RewardPrompt, ScoreRequest
from pad_runtime.score.scorer import Scorer

TRAINING_TOP_K = 64  # what `pad-train` normalises over, unless told otherwise


@dataclass(frozen=True)
class _Given:
    """One reply to be scored.

    Attributes:
        request: what the runtime takes of it.
        pieces: the text of each token.
        weights: of the preference, over the features of each PersRM that is asked; None without a preference.
    """

    request: ScoreRequest
    pieces: list[str]
    weights: list[npt.NDArray[np.float64]] | None


class ReplyScorer:
    """Scores replies with one bundle; its score graph is opened when it is first needed. Any thread may call it."""

    def __init__(self, bundle: Bundle, planner: RowPlanner, encoder: PromptEncoder, tokenizer: Tokenizer) -> None:
        self._bundle, self._planner, self._encoder, self._tokenizer = bundle, planner, encoder, tokenizer
        self._scorer: Scorer | None = None
        self._lock = threading.Lock()

    def score(
        self,
        prompts: Sequence[Prompt],
        replies: Sequence[ReplyLike],
        preferences: Sequence[PreferenceLike] | None,
        *,
        ended: bool,
        top_k: int,
        template_args: Mapping[str, Any],
    ) -> list[ReplyScore]:
        """Scores, one a reply. Arguments and errors as `Generator.score_batch`."""
        config = GenerationConfig(top_k=top_k, template_args=template_args)  # which checks both
        if not isinstance(ended, bool):
            raise OptionError(f"ended={ended!r}", expected="True or False")
        if preferences is None:
            preferences = [None] * len(_listed(prompts, "prompts"))
        for name, values in (("prompts", prompts), ("replies", replies), ("preferences", preferences)):
            if len(_listed(values, name)) != len(prompts):
                raise OptionError(f"{len(values)} {name} for {len(prompts)} prompts", expected="one for each")
        given = [
            self._read(prompt, reply, preference, ended=ended, template_args=config.template_args)
            for prompt, reply, preference in zip(prompts, replies, preferences, strict=True)
        ]
        if not given:
            return []
        scores = self._run([one.request for one in given], config.top_k)
        return [_reply_score(self._bundle.manifest, one, score) for one, score in zip(given, scores, strict=True)]

    def base_logprobs(self, prompt: Sequence[int], reply: Sequence[int]) -> list[float] | None:
        """Log-probabilities of a reply's tokens behind a prompt, in the base; None on a device that runs engines."""
        try:
            (scores,) = self._run([ScoreRequest(tuple(prompt), tuple(reply))], top_k=1)
        except DeviceError:
            return None
        values: list[float] = scores.log_probs.tolist()
        return values

    def _run(self, requests: Sequence[ScoreRequest], top_k: int) -> list[ReplyScores]:
        with self._lock:
            self._scorer = self._scorer or self._bundle.scorer()
            return self._scorer.score(requests, top_k=top_k)

    def _read(
        self,
        prompt: Prompt,
        reply: ReplyLike,
        preference: PreferenceLike,
        *,
        ended: bool,
        template_args: Mapping[str, Any],
    ) -> _Given:
        base = tuple(self._encoder.encode(prompt, template_args))
        has_begun = continues_reply(prompt)
        ids = (*self._encoder.encode_reply(reply, has_begun=has_begun), *([self._end()] if ended else []))
        if not ids:
            raise PromptError("an empty reply", expected="some text or token ids", hint="or say that it ended there")
        pieces = self._tokenizer.pieces(ids, has_begun=has_begun)
        if not asks_for_reward(prompt, preference):
            return _Given(ScoreRequest(base, ids, self._planner.unguided(prompt, template_args)), pieces, None)
        weights: dict[RewardPrompt, npt.NDArray[np.float64]] = {}
        for reward in self._planner.rewards(prompt, preference, template_args):
            asked = RewardPrompt(reward.persrm, reward.prompt)
            weights[asked] = weights.get(asked, 0.0) + _scaled(reward)
        return _Given(ScoreRequest(base, ids, tuple(weights)), pieces, list(weights.values()))

    def _end(self) -> int:
        """The token with which the assistant ends a turn; training's, where the base has several."""
        ends = self._bundle.manifest.eos_token_ids
        if not ends:
            raise OptionError("ended", expected="a base with an end of turn; this bundle's has none")
        return self._tokenizer.eos_id if self._tokenizer.eos_id in ends else ends[0]


def _listed(values: Sequence[Any], name: str) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise OptionError(f"{name} of type {type(values).__name__}", expected="a list", hint="use score for one reply")
    return values


def _scaled(reward: Reward) -> npt.NDArray[np.float64]:
    """Weights of a reward, times its preference's own."""
    check_strength([reward.scale * weight for weight in reward.weights], MAX_STRENGTH, hint="lower the weights")
    return reward.scale * np.array(reward.weights, np.float64)


def _reply_score(manifest: Manifest, given: _Given, scores: ReplyScores) -> ReplyScore:
    """Scores by token, features by name."""
    names, count = _names(manifest, given.request.rewards), len(given.pieces)
    phi = np.concatenate([np.zeros((count, 0)), *scores.phi], axis=1)  # [tokens, features]
    rewards = [None] * count if given.weights is None else (phi @ np.concatenate(given.weights)).tolist()
    return ReplyScore(
        tuple(
            TokenScore(id, text, log_prob, dict(zip(names, values, strict=True)), reward)
            for id, text, log_prob, values, reward in zip(
                given.request.reply, given.pieces, scores.log_probs.tolist(), phi.tolist(), rewards, strict=True
            )
        )
    )


def _names(manifest: Manifest, asked: Sequence[RewardPrompt]) -> list[str]:
    """Names of the features of PersRMs that are asked; of a PersRM on a further prompt, with that prompt's number."""
    times: Counter[int] = Counter()
    names = []
    for reward in asked:
        times[reward.persrm] += 1
        number = times[reward.persrm]
        names += [f"{name} #{number}" if number > 1 else name for name in manifest.persrms[reward.persrm].features]
    return names

"""One request: a prompt, a preference and a config, turned into what a decoder takes and a reply that grows."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pad_rt.allowed.allowed_tokens import AllowedTokens
from pad_rt.allowed.banned import BannedTokens
from pad_rt.allowed.grammar import GrammarMaker
from pad_rt.allowed.joined import JoinedTokens
from pad_rt.allowed.no_repeat import NoRepeatNgram
from pad_rt.config import GenerationConfig
from pad_rt.logprobs import BaseLogprobs
from pad_rt.planner import RowPlanner
from pad_rt.preference import PreferenceLike
from pad_rt.text.prompt import EncodedPrompt, Prompt, continues_reply
from pad_rt.text.reply import Reply
from pad_rt.text.stopping import StopStrings
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import OptionError, PromptError
from pad_runtime.rows.plan import RowPlan
from pad_runtime.rows.sequence import MAX_STRENGTH, Controls, Sampling, SequenceSpec


@dataclass(frozen=True)
class Request:
    """What a decoder takes of one prompt.

    Attributes:
        sequence: its rows, and how its tokens are chosen.
        prompts: token ids by prompt of the sequence.
        room: positions that the longest prompt and the reply may come to.
        reply: what the chosen ids become.
        keeps_trace: whether what each step weighed is part of the result.
        logprobs: candidates whose log-probabilities are reported beside the chosen token's; None reports none.
        base_logprobs: gives the log-probabilities of the reply in the base.
        allowed: tokens that the reply may go on with; None: all.
        owner: whose it is, such as a conversation; None: nobody's.
    """

    sequence: SequenceSpec
    prompts: tuple[tuple[int, ...], ...]
    room: int
    reply: Reply
    keeps_trace: bool = False
    logprobs: int | None = None
    base_logprobs: BaseLogprobs | None = None
    allowed: AllowedTokens | None = None
    owner: object = None

    @property
    def wants_trace(self) -> bool:
        """Whether its steps are traced."""
        return self.keeps_trace or self.logprobs is not None


class RequestMaker:
    """Makes the requests of one bundle."""

    def __init__(
        self, manifest: Manifest, planner: RowPlanner, tokenizer: Tokenizer, base_logprobs: BaseLogprobs
    ) -> None:
        self._manifest, self._planner, self._tokenizer = manifest, planner, tokenizer
        self._base_logprobs = base_logprobs
        self._grammars = GrammarMaker(tokenizer, manifest.vocab_size)

    def make(
        self, prompt: Prompt, preference: PreferenceLike, config: GenerationConfig, *, trace: bool, owner: object = None
    ) -> Request:
        """Check everything, and turn prompt and preference into rows.

        Raises:
            PromptError, PreferenceError, OptionError: what was given, what was expected, what to do.
        """
        manifest = self._manifest
        num_ends = self._num_ends(config)
        for name in ("stop_token_ids", "logit_bias", "banned_token_ids"):
            beyond = [id for id in getattr(config, name) if id >= manifest.vocab_size]
            if beyond:
                raise OptionError(
                    f"{name} with {reprlib.repr(beyond[0])}",
                    expected=f"ids below {manifest.vocab_size}, the vocabulary's size",
                )
        plan = self.plan(prompt, preference, config)
        if plan.longest >= manifest.max_length:
            raise PromptError(
                f"a prompt of {plan.longest} tokens",
                expected=f"at most {manifest.max_length - 1}: the bundle's max_length, less a token of reply",
                hint="shorten it, or export with a larger --max-length",
            )
        # A preference that changes nothing, such as a contrast with the base's own prompt, leaves the base alone.
        guided = trace or len(plan.rows) > 1
        limit = min(config.max_new_tokens, manifest.max_length - plan.longest)
        sampling = Sampling(
            top_k=min(config.top_k + num_ends * guided, manifest.vocab_size),
            temperature=min(config.temperature, MAX_STRENGTH),  # any hotter, and all candidates are as likely
            top_p=config.top_p,
            min_p=config.min_p,
            seed=config.seed,
            offer_end=config.offer_end and guided,
        )
        ends = frozenset(manifest.eos_token_ids) | frozenset(config.stop_token_ids)
        controls = Controls(
            bias=config.logit_bias,
            repetition_penalty=config.repetition_penalty,
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
        )
        special = self._tokenizer.special_tokens if config.stop else {}
        reply = Reply(
            eos=ends,
            max_new_tokens=limit,
            prompt_tokens=len(plan.prompts[0]),
            decoder=self._tokenizer.stream_decoder(has_begun=continues_reply(prompt) or config.form is not None),
            stop=StopStrings(config.stop, special.values()),
            special=special,
        )
        return Request(
            plan.sequence(sampling, controls),
            plan.prompts,
            plan.longest + limit,
            reply,
            keeps_trace=trace,
            logprobs=config.logprobs,
            base_logprobs=self._base_logprobs,
            allowed=self._allowed(config, plan.prompts[0], limit, ends),
            owner=owner,
        )

    def plan(self, prompt: Prompt, preference: PreferenceLike, config: GenerationConfig) -> RowPlan:
        """Rows and readings alone."""
        return self._planner.plan(
            prompt,
            preference,
            beta=config.beta,
            base_sees_preference=config.base_sees_preference,
            template_args=config.template_args,
        )

    def _allowed(
        self, config: GenerationConfig, prompt: Sequence[int], limit: int, ends: Collection[int]
    ) -> AllowedTokens | None:
        """Which tokens the reply may go on with, the most binding first."""
        parts: list[AllowedTokens] = []
        vocab_size, length = self._manifest.vocab_size, len(prompt) + limit
        if config.form is not None:
            parts.append(self._grammars.make(*config.form, ends))
        if config.banned_token_ids:
            parts.append(BannedTokens(config.banned_token_ids, vocab_size))
        if 0 < config.no_repeat_ngram < length:  # nothing longer can come twice
            parts.append(NoRepeatNgram(config.no_repeat_ngram, prompt, length, vocab_size))
        return JoinedTokens(parts) if parts else None

    def _num_ends(self, config: GenerationConfig) -> int:
        """Ends of the turn that are candidates beside the top_k; there is room for all of them."""
        manifest = self._manifest
        num_ends = len(manifest.eos_token_ids) if config.offer_end else 0
        if config.offer_end and not num_ends:
            raise OptionError("offer_end", expected="a base with an end of turn; this bundle's has none")
        if max(config.top_k, min(config.top_k + num_ends, manifest.vocab_size)) > manifest.max_top_k:
            raise OptionError(
                f"top_k {config.top_k}" + f" beside {num_ends} offered ends of turn" * bool(num_ends),
                expected=f"at most {manifest.max_top_k - num_ends}",
                hint="export with a larger --max-top-k" if manifest.max_top_k < manifest.vocab_size else "",
            )
        return num_ends


def asks_for_reward(prompt: Prompt, preference: PreferenceLike) -> bool:
    """Whether a preference guides the reply."""
    return preference is not None or (isinstance(prompt, EncodedPrompt) and prompt.reward is not None)

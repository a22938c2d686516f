"""A scorer that needs no instrument: how much likelier a reply is where the base is asked for the feature."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from transformers import DynamicCache

from pad_export.read.cache_argument import cache_argument
from pad_train.pairs.feature import Style, style_of
from pad_train.train.backbone import Backbone

_BATCH = 16


class StyleContrast:
    """Mean over a reply's tokens of log p(token | more) - log p(token | less), in nats.

    "More" and "less" are the prompt behind the system messages and examples of its two styles.

    Args:
        styles: pairs of styles (more, less); at least one.
    """

    def __init__(self, backbone: Backbone, styles: Sequence[tuple[Style, Style]]) -> None:
        self._backbone, self._styles = backbone, tuple(styles)

    def __call__(self, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        """One score a reply; 0 for an empty one."""
        asked = list(dict.fromkeys(zip(prompts, replies, strict=True)))
        scores: dict[tuple[str, str], float] = {}
        for styles in self._styles:
            own = [pair for pair in asked if style_of(pair[0], self._styles) is styles]
            if own:
                more, less = (self._log_probs(own, style) for style in styles)
                scores.update(zip(own, (more - less).tolist(), strict=True))
        return [scores[pair] for pair in zip(prompts, replies, strict=True)]

    @torch.inference_mode()
    def _log_probs(self, asked: Sequence[tuple[str, str]], style: Style) -> torch.Tensor:
        """Mean log-probability of each reply's tokens behind the style, [n]; the beginning of all is read once."""
        heads = [self._backbone.encode_prompt(style.messages(prompt)) for prompt, _ in asked]
        texts = [self._backbone.encode_reply(reply, finished=False) for _, reply in asked]
        shared = _shared_length(heads)
        cache = DynamicCache(config=self._backbone.model.model.config)
        if shared:
            self._read([heads[0][:shared]], cache)
        means = []
        for begin in range(0, len(asked), _BATCH):
            some = slice(begin, begin + _BATCH)
            rows = [[*head[shared:], *text] for head, text in zip(heads[some], texts[some], strict=True)]
            width, own = max(map(len, rows)), copy.deepcopy(cache)
            if shared:
                own.batch_repeat_interleave(len(rows))
            states = self._read([[*row, *[0] * (width - len(row))] for row in rows], own)
            for state, head, text in zip(states, heads[some], texts[some], strict=True):
                first = len(head) - shared - 1
                logits = self._backbone.logits(state[first : first + len(text)])
                picked = logits.log_softmax(-1).gather(1, torch.tensor(text, dtype=torch.long)[:, None])
                means.append(picked.sum() / max(1, len(text)))
        return torch.stack(means)

    def _read(self, rows: Sequence[Sequence[int]], cache: DynamicCache) -> torch.Tensor:
        """Last hidden states of rows of one length behind what the cache holds, [n, length, hidden]."""
        output = self._backbone.model.model(torch.tensor(rows), use_cache=True, **cache_argument(cache))
        states: torch.Tensor = output.last_hidden_state
        return states


def _shared_length(heads: Sequence[list[int]]) -> int:
    """How many first tokens all of them have in common, and another one behind."""
    first, last = min(heads), max(heads)  # in the order of lists, the two that differ first
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return min(same, *(len(head) - 1 for head in heads))

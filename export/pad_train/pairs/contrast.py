"""A scorer that needs no instrument: how much likelier a reply is where the base is asked for the feature."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pad_train.pairs.feature import Style, style_of
from pad_train.train.backbone import Backbone

_BATCH = 16


class StyleContrast:
    """Mean over a reply's tokens of log p(token | more) - log p(token | less), in nats.

    "More" and "less" are the prompt behind the two system messages of its style, without the style's first words: those
    are no part of the reply.

    Args:
        styles: pairs of styles (more, less); at least one.
    """

    def __init__(self, backbone: Backbone, styles: Sequence[tuple[Style, Style]]) -> None:
        self._backbone, self._styles = backbone, tuple(styles)

    def __call__(self, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        """One score a reply; 0 for an empty one."""
        asked = list(dict.fromkeys(zip(prompts, replies, strict=True)))
        scores: dict[tuple[str, str], float] = {}
        for begin in range(0, len(asked), _BATCH):
            some = asked[begin : begin + _BATCH]
            more, less = (self._log_probs(some, side) for side in (0, 1))
            scores.update(zip(some, (more - less).tolist(), strict=True))
        return [scores[pair] for pair in zip(prompts, replies, strict=True)]

    @torch.inference_mode()
    def _log_probs(self, asked: Sequence[tuple[str, str]], side: int) -> torch.Tensor:
        """Mean log-probability of each reply's tokens behind one side of the prompt's style, [n]."""
        styles = [style_of(prompt, self._styles)[side] for prompt, _ in asked]
        heads = [
            self._backbone.encode_prompt(style.messages(prompt))
            for style, (prompt, _) in zip(styles, asked, strict=True)
        ]
        texts = [self._backbone.encode_reply(reply, finished=False) for _, reply in asked]
        rows = [[*head, *text] for head, text in zip(heads, texts, strict=True)]
        width = max(map(len, rows))
        states = self._backbone.model.model(torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]))
        means = []
        for state, head, text in zip(states.last_hidden_state, heads, texts, strict=True):
            logits = self._backbone.logits(state[len(head) - 1 : len(head) + len(text) - 1])
            own = logits.log_softmax(-1).gather(1, torch.tensor(text, dtype=torch.long)[:, None])
            means.append(own.sum() / max(1, len(text)))
        return torch.stack(means)

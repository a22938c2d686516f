"""The base's own replies, sampled towards a style and, block by block, towards a higher score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from pad_export.read.cache_argument import cache_argument
from pad_train.pairs.pair_choice import MadeReply
from pad_train.train.backbone import Backbone

TEMPERATURE = 0.8
TOP_K = 10


@dataclass(frozen=True)
class Draw:
    """One reply to sample.

    Attributes:
        prompts: token ids of each row; the first row's top k are the candidates.
        coefficients: of the rows in score(a) = sum_row c_row * z_row(a), as in a step of PAD.
    """

    prompts: tuple[tuple[int, ...], ...]
    coefficients: tuple[float, ...]


@torch.inference_mode()
def sample_replies(
    backbone: Backbone,
    draws: Sequence[Draw],
    score: Callable[[list[int], list[str]], Sequence[float]],
    *,
    samples: int,
    block: int,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[MadeReply]:
    """Sample one reply for each draw; all draws have the same number of rows.

    Each draw has `samples` candidates. After every `block` tokens they all go on from the candidate with the highest
    score. This is best-of-n with a horizon of one block: the text stays likely under the base, and has much more of the
    feature than a single choice among finished replies would give.

    Args:
        score: (index of the draw, reply so far) for each candidate -> scores; asked only if samples > 1.
    """
    rows = len(draws[0].prompts)
    owners = [index for index in range(len(draws)) for _ in range(samples)]  # [n], n = draws x samples
    mix = torch.tensor([draws[owner].coefficients for owner in owners])  # [n, rows]
    ids, mask = pad_left([prompt for draw in draws for prompt in draw.prompts])
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    tokens = torch.zeros(len(owners), 0, dtype=torch.long)
    done = torch.zeros(len(owners), 1, dtype=torch.bool)
    cache = DynamicCache(config=backbone.model.model.config)
    for step in range(max_new_tokens):
        output = backbone.model.model(
            ids, attention_mask=mask, position_ids=position, use_cache=True, **cache_argument(cache)
        )
        hidden = output.last_hidden_state[:, -1]  # [n x rows, hidden]
        if step == 0:  # prompts were read once for all candidates of a draw
            copies = _rows_of(torch.tensor(owners), rows)
            cache.reorder_cache(copies)
            hidden, mask, position = hidden[copies], mask[copies], position[copies]
        hidden = hidden.view(len(owners), rows, -1)
        candidates, scores = _mix(backbone, hidden, mix)
        pick = torch.multinomial((scores / TEMPERATURE).softmax(-1), 1, generator=generator)
        token = candidates.gather(1, pick)
        token[done] = backbone.eos_id
        done = done | (token == backbone.eos_id)
        tokens = torch.cat([tokens, token], dim=1)
        last = step == max_new_tokens - 1 or bool(done.all())
        if samples > 1 and (last or (step + 1) % block == 0):
            best = _best(score(owners, _texts(backbone, tokens)), samples)
            tokens, done, token = tokens[best], done[best], token[best]
            cache.reorder_cache(_rows_of(best, rows))
        if last:
            break
        ids = token.repeat_interleave(rows, 0)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position[:, -1:] + 1
    texts = _texts(backbone, tokens)
    return [MadeReply(texts[i], bool(done[i])) for i in range(0, len(owners), samples)]


def _mix(backbone: Backbone, hidden: torch.Tensor, mix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first row's top k and their scores, both [n, k]; only the first row computes logits of the whole vocabulary.

    Args:
        hidden: last hidden states, [n, rows, hidden].
        mix: [n, rows].
    """
    first = backbone.logits(hidden[:, 0])
    candidates = first.topk(min(TOP_K, first.shape[-1])).indices
    others = backbone.candidate_logits(hidden, candidates[:, None].expand(-1, hidden.shape[1], -1))
    return candidates, (others * mix[:, :, None]).sum(1)


def _best(scores: Sequence[float], samples: int) -> torch.Tensor:
    """For each candidate, the index of its draw's candidate with the highest score."""
    table = torch.tensor(scores).view(-1, samples)
    first = torch.arange(len(table)) * samples
    return (first + table.argmax(1)).repeat_interleave(samples)


def _rows_of(groups: torch.Tensor, rows: int) -> torch.Tensor:
    """Batch indices of all rows of these groups."""
    return (groups[:, None] * rows + torch.arange(rows)).flatten()


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of prompts, both [n, longest], padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _texts(backbone: Backbone, tokens: torch.Tensor) -> list[str]:
    replies = []
    for row in tokens.tolist():
        end = row.index(backbone.eos_id) if backbone.eos_id in row else len(row)
        replies.append(backbone.tokenizer.decode(row[:end], skip_special_tokens=True))
    return replies

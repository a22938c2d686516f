"""Penalties, bias, mask, top_k, temperature, top_p and min_p against transformers' own processors, id by id.

Presence and frequency are no processors there: they are held against OpenAI's formula,
mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, with c[j] how often the reply has token j.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from pad_runtime.bundle import contract
from tests.support import tiny_bundles, tiny_models
from tests.support.hand_fed import Asked, AskedReading, AskedRow, HandFedGraph

NUM_BATCHES, NUM_SEQUENCES, NUM_STEPS = 12, 6, 3
NUM_TOKENS = NUM_BATCHES * NUM_SEQUENCES * NUM_STEPS
NUM_LIKELY = 12  # tokens that controls are tried on, and as many whose logits are just below 0
LOGITS = "lm_head"  # the base's logits inside the graph

Process: TypeAlias = Callable[["Case", torch.Tensor], torch.Tensor]
Draw: TypeAlias = Callable[[np.random.Generator, list[int]], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A sequence at a step: what was asked, and the prompt and reply that are counted."""

    asked: Asked
    prompt: list[int]
    reply: list[int]
    vocab_size: int

    @property
    def ids(self) -> torch.Tensor:
        return torch.tensor([[*self.prompt, *self.reply]])

    @property
    def counts(self) -> torch.Tensor:
        return torch.bincount(torch.tensor(self.reply), minlength=self.vocab_size).float()[None]


def _suppress(case: Case, allowed: list[int], scores: torch.Tensor) -> torch.Tensor:
    banned = sorted({*range(case.vocab_size)} - {*allowed})
    return theirs.SuppressTokensLogitsProcessor(banned)(case.ids, scores)


def _bias(case: Case, scores: torch.Tensor) -> torch.Tensor:
    if not case.asked.bias:
        return scores
    pairs: list[list[list[int] | float]] = [[[token], value] for token, value in case.asked.bias.items()]
    return theirs.SequenceBiasLogitsProcessor(pairs)(case.ids, scores)


def _repetition(case: Case, scores: torch.Tensor) -> torch.Tensor:
    return theirs.RepetitionPenaltyLogitsProcessor(case.asked.repetition_penalty)(case.ids, scores)


def _mask(case: Case, scores: torch.Tensor) -> torch.Tensor:
    return scores if case.asked.allowed is None else _suppress(case, list(case.asked.allowed), scores)


def _top_p(case: Case, scores: torch.Tensor) -> torch.Tensor:
    return theirs.TopPLogitsWarper(case.asked.top_p)(case.ids, scores) if case.asked.top_p < 1 else scores


CONTROLS: dict[str, Process] = {  # what changes the logits, in the graph's order
    "repetition": _repetition,
    "presence": lambda case, scores: scores - (case.counts > 0).float() * case.asked.presence_penalty,
    "frequency": lambda case, scores: scores - case.counts * case.asked.frequency_penalty,
    "bias": _bias,
    "mask": _mask,
}
WARPERS: dict[str, Process] = {  # what is left to choose among
    "temperature": lambda case, scores: theirs.TemperatureLogitsWarper(case.asked.temperature)(case.ids, scores),
    "top_p": _top_p,
    "min_p": lambda case, scores: theirs.MinPLogitsWarper(case.asked.min_p)(case.ids, scores),
}
TOP_K: dict[str, Process] = {
    "top_k": lambda case, scores: theirs.TopKLogitsWarper(case.asked.top_k)(case.ids, scores),
}
RIGHT = CONTROLS | WARPERS | TOP_K


def _all_divided(case: Case, scores: torch.Tensor) -> torch.Tensor:
    written = torch.zeros_like(scores).index_fill(1, case.ids[0], 1).bool()
    return torch.where(written, scores / case.asked.repetition_penalty, scores)


def _bits_from_the_other_end(case: Case, scores: torch.Tensor) -> torch.Tensor:
    turned = [token ^ 7 for token in case.asked.allowed or range(case.vocab_size)]
    return _suppress(case, [token for token in turned if token < case.vocab_size], scores)


def _bias_of_the_next(case: Case, scores: torch.Tensor) -> torch.Tensor:
    shifted = {(token + 1) % case.vocab_size: value for token, value in case.asked.bias.items()}
    return _bias(replace(case, asked=replace(case.asked, bias=shifted)), scores)


def _presence_of_the_prompt(case: Case, scores: torch.Tensor) -> torch.Tensor:
    return CONTROLS["presence"](replace(case, reply=case.ids[0].tolist()), scores)


def _frequency_once(case: Case, scores: torch.Tensor) -> torch.Tensor:
    return CONTROLS["frequency"](replace(case, reply=list({*case.reply})), scores)


def _min_p_of_one(case: Case, scores: torch.Tensor) -> torch.Tensor:
    chances = torch.softmax(scores, -1)
    return scores.masked_fill((chances < case.asked.min_p) & (chances < chances.max()), -torch.inf)


def _top_p_without_the_token_that_fills_it(case: Case, scores: torch.Tensor) -> torch.Tensor:
    ordered, order = torch.softmax(scores, -1).sort(descending=True)
    outside = ordered.cumsum(-1) > case.asked.top_p
    outside[:, 0] = False
    return scores.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)


WRONG: dict[str, Process] = {  # each a mistake that is made in earnest
    "repetition": _all_divided,
    "presence": _presence_of_the_prompt,
    "frequency": _frequency_once,
    "bias": _bias_of_the_next,
    "mask": _bits_from_the_other_end,
    "top_k": lambda case, scores: theirs.TopKLogitsWarper(40)(case.ids, scores),  # the most of the batch
    "temperature": lambda case, scores: scores,
    "top_p": _top_p_without_the_token_that_fills_it,
    "min_p": _min_p_of_one,
}


def _some(random: np.random.Generator, likely: list[int]) -> list[int]:
    return [int(token) for token in random.choice(likely, len(likely) // 3, replace=False)]


DRAWS: dict[str, Draw] = {
    "repetition": lambda random, likely: {
        "repetition_penalty": random.uniform(0.6, 2.0),
        "allowed": None if random.integers(2) else likely[NUM_LIKELY:],  # all, or what is divided by mistake
    },
    "presence": lambda random, _: {"presence_penalty": random.uniform(-2, 2)},
    "frequency": lambda random, _: {"frequency_penalty": random.uniform(-1, 2)},
    "bias": lambda random, likely: {"bias": {token: random.uniform(-4, 4) for token in _some(random, likely)}},
    "mask": lambda random, likely: {"allowed": sorted({*_some(random, likely), *random.integers(0, 356, 60).tolist()})},
    "top_k": lambda random, _: {"top_k": int(random.choice([1, 2, 5, 40])), "temperature": random.uniform(1, 4)},
    "temperature": lambda random, _: {"temperature": random.choice([0.0, random.uniform(0.3, 4)])},
    "top_p": lambda random, _: {"top_p": random.uniform(0.05, 1), "temperature": random.uniform(1, 4)},
    "min_p": lambda random, _: {"min_p": random.uniform(0, 1), "temperature": random.uniform(1, 4)},
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], HandFedGraph]:
    """By dialect and name, with the base's logits as a further output."""
    folder = tmp_path_factory.mktemp("controls")
    tiny_models.make_base(folder / "base", "llama", seed=3)
    tiny_models.make_adapter(folder / "persrm", folder / "base", seed=4)
    found = {}
    for dialect in ("ort", "standard"):
        bundle = tiny_bundles.export(folder / dialect, folder / "base", [folder / "persrm"], dialect=dialect)
        for name in (contract.STEP_GRAPH, contract.BASE_GRAPH):
            found[dialect, name] = HandFedGraph(bundle, name, exposed=[LOGITS])
    return found


def draw_batch(graph: HandFedGraph, random: np.random.Generator, names: list[str]) -> list[Asked]:
    """Random prompts, and random controls on what is likely after them; the histories are made of that too."""
    batch = []
    for _ in range(NUM_SEQUENCES):
        prompts = [tuple(random.integers(5, 350, random.integers(1, 12)).tolist()) for _ in range(2)]
        asked = Asked((AskedRow(0, prompts[0]),), top_k=40, seed=int(random.integers(2**31)))
        if graph.is_guided:
            reading = AskedReading(1, (), random.uniform(-1, 1))
            row = AskedRow(0, prompts[1], is_adapted=True)
            asked = replace(
                asked, rows=(*asked.rows, row), readings=(reading,), base_coefficient=random.uniform(0.5, 2)
            )
        batch.append(asked)
    logits = graph.run(batch).step()[LOGITS]
    for index, asked in enumerate(batch):
        order, below = np.argsort(-logits[index]), int((logits[index] >= 0).sum())
        likely = [*order[:NUM_LIKELY].tolist(), *order[below : below + NUM_LIKELY].tolist()]
        history = (_some(random, likely), random.choice(_some(random, likely), 12).tolist())
        fields: dict[str, Any] = {}
        for name in names:
            fields |= DRAWS[name](random, likely)
        batch[index] = replace(asked, history=history, **fields)
    return batch


def choose(case: Case, logits: torch.Tensor, rewards: torch.Tensor, step: int, process: Mapping[str, Process]) -> int:
    """The token by processors on the base's logits [1, V]; `rewards` are what the readings add to each token."""
    controlled = logits
    for name in CONTROLS:
        controlled = process[name](case, controlled)
    inside = torch.isfinite(process["top_k"](case, controlled))
    scores = case.asked.base_coefficient * logits + rewards + (controlled - logits)
    scores = scores.masked_fill(~inside, -torch.inf)
    if case.asked.temperature == 0.0:
        return int(scores.argmax())
    warped = scores
    for name in WARPERS:
        warped = process[name](case, warped)
    noise = torch.zeros_like(scores)
    own = torch.argsort(scores, descending=True, stable=True)[:, : case.asked.top_k]
    noise.scatter_(1, own, torch.tensor(case.asked.noise[step])[None, : own.shape[1]])
    return int((warped + noise).argmax())


def hits(graph: HandFedGraph, names: list[str], process: Mapping[str, Process]) -> Iterator[bool]:
    """Whether the processors choose the graph's token, for NUM_TOKENS of them; a sequence goes on with the graph's."""
    random = np.random.default_rng(7)
    vocab = graph.manifest.vocab_size
    for _ in range(NUM_BATCHES):
        batch = draw_batch(graph, random, names)
        run = graph.run(batch)
        replies = [list(asked.written[1]) for asked in batch]
        for step in range(NUM_STEPS):
            outputs = run.step()
            for index, (asked, reply) in enumerate(zip(batch, replies, strict=True)):
                logits = torch.tensor(outputs[LOGITS][index : index + 1])
                rewards = torch.zeros(1, vocab)
                if graph.is_guided:
                    own = run.readings.index((index, 0))
                    read = torch.tensor(outputs[contract.READING_LOGITS][own]) * asked.readings[0].coefficient
                    rewards[0, torch.tensor(outputs[contract.CANDIDATES][index])] = read
                chosen = int(outputs[contract.NEXT_IDS][index])
                yield (
                    choose(Case(asked, list(asked.written[0]), reply, vocab), logits, rewards, step, process) == chosen
                )
                reply.append(chosen)


@pytest.mark.parametrize("graph", [contract.BASE_GRAPH, contract.STEP_GRAPH])
@pytest.mark.parametrize("name", list(DRAWS))
def test_each_is_transformers_own(graphs: Mapping[tuple[str, str], HandFedGraph], name: str, graph: str) -> None:
    """Of random sequences; the same done wrongly is noticed."""
    assert list(hits(graphs["ort", graph], [name], RIGHT)) == [True] * NUM_TOKENS
    assert not all(hits(graphs["ort", graph], [name], RIGHT | {name: WRONG[name]}))


@pytest.mark.parametrize("graph", [contract.BASE_GRAPH, contract.STEP_GRAPH])
@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_all_of_them_at_once(graphs: Mapping[tuple[str, str], HandFedGraph], dialect: str, graph: str) -> None:
    """Sampled by all sequences; each done wrongly among the others is noticed."""
    names = [name for name in DRAWS if name != "temperature"]
    assert list(hits(graphs[dialect, graph], names, RIGHT)) == [True] * NUM_TOKENS
    for name in names:
        assert not all(hits(graphs[dialect, graph], names, RIGHT | {name: WRONG[name]}))

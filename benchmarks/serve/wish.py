"""Random requests: as a body of the API, and as the same call in Python."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pad_rt import EncodedPrompt, GenerationConfig, Generator, Preference
from pad_rt.text.prompt import Prompt

MODEL = "bundle"
_WORDS = (
    "sea", "storm", "bread", "winter", "garden", "letter", "music", "bridge", "market", "star", "horse", "clock",
    "river", "paper", "lamp", "stone",
)  # fmt: skip
_DISH = {
    "type": "object",
    "properties": {"dish": {"type": "string", "maxLength": 20}, "minutes": {"type": "integer", "maximum": 99}},
    "required": ["dish", "minutes"],
    "additionalProperties": False,
}
_OF_PAD = ("beta", "top_k", "offer_end")


@dataclass(frozen=True)
class Wish:
    """One request.

    Attributes:
        kind: what guides it, and how it is sent, for counts.
        path: of the endpoint.
        body: the JSON object.
        text: the user's turn, or the text to go on with.
        pad: the guidance that is meant, the person's too.
        config: the same options in Python, of the first sample.
        n: samples; each has the next seed.
    """

    kind: str
    path: str
    body: Mapping[str, Any]
    text: str
    pad: Mapping[str, Any]
    config: GenerationConfig
    n: int

    @property
    def is_chat(self) -> bool:
        """Whether it is a chat, rather than a text to go on with."""
        return "messages" in self.body

    @property
    def is_stream(self) -> bool:
        """Whether the reply comes piece by piece."""
        return bool(self.body["stream"])

    def call(self, generator: Generator) -> tuple[list[Prompt], list[Preference | None], list[GenerationConfig]]:
        """Prompts, preferences and configs of its samples, for `generate_batch`."""
        weights, prompt = self.pad.get("weights"), self.text
        preference = Preference(weights=weights) if weights else None
        encoded: Prompt = prompt
        if not self.is_chat:
            ids = generator.encode(prompt)
            encoded = EncodedPrompt(ids, ids if preference else None)
        configs = [replace(self.config, seed=self.config.seed + sample) for sample in range(self.n)]
        return [encoded] * self.n, [preference] * self.n, configs


def make_people(features: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The object "pad" of two people, by name."""
    return {
        "anna": {"weights": {features[0]: 1.0, features[-1]: 0.5}, "beta": 1.25},
        "ben": {"weights": {features[1]: 1.5}, "top_k": 12, "offer_end": True},
    }


def make_wish(chance: random.Random, features: Sequence[str]) -> Wish:
    """Any kind of request, by these features and the people that are made of them."""
    kind = chance.choice(("plain", "weights", "weights", "person"))
    is_chat, is_stream = chance.random() < 0.8, chance.random() < 0.6
    model, pad, given = MODEL, dict[str, Any](), dict[str, Any]()
    if kind == "weights":
        given = {"weights": {chance.choice(features): round(chance.uniform(-1, 1.5), 2)}}
    if kind == "person":
        name, pad = chance.choice(list(make_people(features).items()))
        model = f"{MODEL}:{name}"
    if kind != "plain" and chance.random() < 0.3:
        given |= {"beta": chance.choice((0.5, 1.5)), "top_k": chance.choice((5, 12))}
    pad |= given
    text = " ".join(chance.choices(_WORDS, k=chance.choice((5, 5, 20, 20, 40, 70))))
    body: dict[str, Any] = {"model": model, "stream": is_stream} | ({"pad": given} if given else {})
    body |= {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
    n = chance.choice((1, 1, 1, 2, 3))
    shared = _make_options(chance)
    options = dict(shared)
    limit = chance.choice((1, 8, 24, 60))
    body |= shared | {"max_tokens": limit, "n": n}
    if chance.random() < 0.2:
        options["logprobs"] = 2
        body |= {"logprobs": True, "top_logprobs": 2} if is_chat else {"logprobs": 2}
    if is_chat and chance.random() < 0.1:
        kind += ", json_schema"
        options["json_schema"] = _DISH
        form = {"name": "dish", "schema": _DISH, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    options |= {name: pad[name] for name in _OF_PAD if name in pad}
    if is_stream and chance.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    return Wish(kind, path, body, text, pad, GenerationConfig(**options, max_new_tokens=limit), n)


def _make_options(chance: random.Random) -> dict[str, Any]:
    """Options that have the same name and value in a body and in a config."""
    options: dict[str, Any] = {"temperature": 0, "seed": chance.randrange(1000)}
    if chance.random() < 0.4:
        options |= {"temperature": 0.8, "top_p": chance.choice((1.0, 0.9))}
    if chance.random() < 0.3:
        options |= {"repetition_penalty": 1.2, "frequency_penalty": 0.1}
    if chance.random() < 0.2:
        options["stop"] = [chance.choice(_WORDS), "\n\n"]
    if chance.random() < 0.1:
        options["logit_bias"] = {str(chance.randrange(60)): chance.choice((-100, 2))}
    return options

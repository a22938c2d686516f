"""What a body asks for: the same for chats and for completions of a text."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pad_rt.api.error import ApiError, refusal, to_api_error
from pad_rt.api.fields import Fields
from pad_rt.api.guidance import Guidance
from pad_rt.config import MAX_SEED, ConfigLike, GenerationConfig
from pad_rt.engine.ticket import Ticket
from pad_rt.generator import Generator
from pad_rt.preference import Preference, PreferenceLike
from pad_rt.text.prompt import EncodedPrompt, Prompt
from pad_runtime.errors import OutOfMemoryError

Kind: TypeAlias = Literal["chat", "text"]
MAX_CHOICES = 128  # replies to one body, as in OpenAI's API
MAX_TOP_LOGPROBS = 20  # the same
MAX_STOPS = 128  # each is looked for at every token, while other requests wait
HARMLESS: Mapping[str, tuple[object, ...]] = {"store": (False,), "service_tier": ("auto", "default")}
_NOTES = ("safety_identifier", "prompt_cache_key")  # strings for the caller's own records
_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_CLIENTS_DEFAULTS = {"temperature": 1.0}  # OpenAI's; everywhere else in PAD-RT greedy is the default
# Fields by the options that they set, where the names differ.
_FIELD_OF = {
    **{name: name for name in (*_NUMBERS, "logit_bias", "seed", "stop")},
    **{name: f"pad.{name}" for name in ("beta", "top_k", "offer_end")},
    "json_schema": "response_format",
}


@dataclass(frozen=True)
class ApiRequest:
    """A body that was read.

    Attributes:
        kind: of a chat, or of texts as they are.
        model: the name that is asked for.
        prompts: a chat's messages; or texts and lists of token ids.
        guidance: the object "pad"; None for a body without one.
        options: of a `GenerationConfig`; ranges are checked by `submit`.
        max_new_tokens: None for as many as fit, within the server's limit.
        max_field: the body's name for it.
        n: replies to each prompt.
        stream: whether the reply comes piece by piece.
        include_usage: whether a stream ends with what it took.
        top_logprobs: candidates whose log-probabilities are told beside each token's; None tells none.
        user: the caller's own name for whoever asks; it changes nothing.
    """

    kind: Kind
    model: str
    prompts: tuple[Any, ...]
    guidance: Guidance | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    max_field: str = "max_tokens"
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    top_logprobs: int | None = None
    user: str | None = None

    @property
    def prompt_field(self) -> str:
        """The body's name of the prompts."""
        return "messages" if self.kind == "chat" else "prompt"

    @property
    def num_choices(self) -> int:
        """Replies in all."""
        return len(self.prompts) * self.n

    def submit(self, generator: Generator, person: Guidance | None, *, max_new_tokens: int) -> list[Ticket]:
        """Queue all its replies, or none.

        Args:
            generator: of the model that is asked for.
            person: guidance that the name stands for; the body's goes over it, field by field.
            max_new_tokens: the most tokens of a reply that a body may ask for, and those of one that does not say.

        Returns:
            Tickets: the first prompt's n, then the next one's. Sample i has the seed + i.

        Raises:
            ApiError: a value outside its range, or one that this model does not take; too many wait already.
        """
        try:
            return self._submit(generator, self.guidance_of(person), max_new_tokens)
        except ApiError:
            raise
        except OutOfMemoryError as error:  # it would not fit alone
            raise refusal(self.prompt_field, str(error)) from error
        except Exception as error:
            raise self.to_api_error(error) from error

    def guidance_of(self, person: Guidance | None) -> Guidance:
        """The body's guidance over a person's."""
        return (self.guidance or Guidance()).over(person or Guidance())

    def to_api_error(self, error: Exception) -> ApiError:
        """What the client is told of an error that was raised by the generator, or by a ticket."""
        fields = {**_FIELD_OF, "logprobs": "top_logprobs" if self.kind == "chat" else "logprobs"}
        return to_api_error(error, prompt=self.prompt_field, options=fields)

    def _submit(self, generator: Generator, guidance: Guidance, max_new_tokens: int) -> list[Ticket]:
        wish = guidance.wish()
        if guidance.explain and wish is None:
            raise refusal(
                "pad.explain", "explain without weights and preference", hint="the base alone weighs nothing: leave it"
            )
        wanted = self.max_new_tokens or max_new_tokens
        if wanted > max_new_tokens:
            expected = f"at most {max_new_tokens}, the server's limit"
            raise refusal(self.max_field, f"{self.max_field}={wanted}", expected=expected)
        logprobs = 0 if guidance.explain and self.top_logprobs is None else self.top_logprobs  # they name each token
        config = GenerationConfig(
            **{**_CLIENTS_DEFAULTS, **self.options, **guidance.options},
            max_new_tokens=wanted,
            logprobs=logprobs,
        )
        prompts: list[Prompt] = []
        configs: list[ConfigLike] = []
        for given in self.prompts:
            prompts += [given if self.kind == "chat" else _raw(given, wish, generator)] * self.n
            configs += [replace(config, seed=(config.seed + sample) % MAX_SEED) for sample in range(self.n)]
        preferences: list[PreferenceLike] = [wish] * len(prompts)
        return generator.submit_batch(prompts, preferences=preferences, configs=configs, trace=bool(guidance.explain))


def _raw(text: str | list[int], wish: Preference | None, generator: Generator) -> Prompt:
    """A text as it is, without a chat template.

    A base without one takes texts so. Elsewhere a PersRM reads the same tokens, in which no preference in words has a
    place.
    """
    if isinstance(text, str) and generator.manifest.tokenizer.chat_template is None:
        return text
    if wish is not None and wish.text is not None:
        given = "a preference in words for a prompt without a chat template"
        raise refusal("pad.preference", given, expected="weights", hint="send a chat to guide by words")
    ids = generator.encode(text) if isinstance(text, str) else text
    return EncodedPrompt(ids, None if wish is None else ids)


def read_common(fields: Fields, names_of_max: tuple[str, ...]) -> dict[str, Any]:
    """The fields that chats and texts share, as arguments of an `ApiRequest`.

    Args:
        fields: of the body.
        names_of_max: of the field with the most tokens of a reply; those that are given must agree.

    Raises:
        ApiError: a field of another type, or too long a list.
    """
    model = fields.text("model")
    if model is None:
        raise fields.refused("model", None, "the name of a model, see GET /v1/models")
    for name in _NOTES:
        fields.text(name)
    fields.mapping("metadata")
    pad, seed = fields.value("pad"), fields.integer("seed")
    options = {name: fields.value(name) for name in (*_NUMBERS, "logit_bias", "stop")}
    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(options.get("stop"), list) and len(options["stop"]) > MAX_STOPS:
        raise fields.refused(
            "stop", options["stop"], f"at most {MAX_STOPS} strings; these are {len(options['stop']):,}"
        )
    return {
        "model": model,
        "user": fields.text("user"),
        "guidance": None if pad is None else Guidance.read(pad),
        "options": {**options, "seed": (secrets.randbits(63) if seed is None else seed) % MAX_SEED},
        **_read_max(fields, names_of_max),
        "n": fields.integer("n", least=1, most=MAX_CHOICES) or 1,
        **_read_stream(fields),
    }


def _read_max(fields: Fields, names: tuple[str, ...]) -> dict[str, Any]:
    given = {name: value for name in names if (value := fields.integer(name, least=1)) is not None}
    if len(set(given.values())) > 1:
        both = " beside ".join(f"{name}={value}" for name, value in given.items())
        raise refusal(next(iter(given)), both, expected="one of them")
    return next(({"max_field": name, "max_new_tokens": value} for name, value in given.items()), {})


def _read_stream(fields: Fields) -> dict[str, bool]:
    stream, options = bool(fields.flag("stream")), fields.nested("stream_options")
    if options is None:
        return {"stream": stream}
    if not stream:
        raise refusal("stream_options", "stream_options without stream", expected="both")
    include_usage = bool(options.flag("include_usage"))
    options.finish({"include_obfuscation": (False,)})
    return {"stream": stream, "include_usage": include_usage}

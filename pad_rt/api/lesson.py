"""The bodies that teach a person's taste: POST /v1/people/NAME/prefer, rate, edit, ask and answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pad_rt.api.error import refusal
from pad_rt.api.fields import Fields
from pad_rt.taste.choice import Choice
from pad_rt.taste.question import Answer
from pad_rt.text.prompt import Prompt

MAX_SKIPPED = 1000  # questions that a body may name


@dataclass(frozen=True)
class ChoiceLesson:
    """A choice between replies, and the name of the model that rates them."""

    model: str
    choice: Choice


@dataclass(frozen=True)
class AnswerLesson:
    """The answer to a question that the server asked."""

    model: str
    question: str
    answer: Answer


@dataclass(frozen=True)
class Asked:
    """A wish to be asked.

    Attributes:
        skip: ids of questions that were not answered, and are not to come again.
    """

    model: str
    skip: tuple[str, ...] = ()


def read_prefer(body: object) -> ChoiceLesson:
    """One reply is better than another; `ended: false` if they were cut.

    Raises:
        ApiError: here and below: a field is missing, of another type, or unknown; it names the field.
    """
    fields = Fields(body)
    ended = fields.flag("ended")
    choice = Choice(
        "preferred",
        _prompt(fields),
        better=_reply(fields, "better"),
        worse=_reply(fields, "worse"),
        ended=ended is not False,
    )
    return _finish(fields, choice)


def read_edit(body: object) -> ChoiceLesson:
    """The person made a reply into another one."""
    fields = Fields(body)
    choice = Choice("edited", _prompt(fields), better=_reply(fields, "after"), worse=_reply(fields, "before"))
    return _finish(fields, choice)


def read_rate(body: object) -> ChoiceLesson:
    """A reply is better (1) or worse (-1) than what the base alone would have replied."""
    fields = Fields(body)
    prompt, reply, rating = _prompt(fields), _reply(fields, "reply"), fields.value("rating")
    if rating not in (1, -1) or isinstance(rating, bool):
        raise fields.refused("rating", rating, "1 or -1")
    better, worse = (reply, None) if rating == 1 else (None, reply)
    return _finish(fields, Choice("rated", prompt, better, worse))


CHOICES: Mapping[str, Callable[[object], ChoiceLesson]] = {
    "prefer": read_prefer,
    "rate": read_rate,
    "edit": read_edit,
}


def read_answer(body: object) -> AnswerLesson:
    """Which reply of a question is better."""
    fields = Fields(body)
    model, question, answer = _needed(fields, "model"), _needed(fields, "question"), fields.value("answer")
    if answer not in ("a", "b"):
        raise fields.refused("answer", answer, '"a" or "b"; for neither, ask again and skip this question')
    fields.finish()
    return AnswerLesson(model, question, answer)


def read_asked(body: object) -> Asked:
    """What is not to be asked."""
    fields = Fields(body)
    model, skip = _needed(fields, "model"), fields.value("skip")
    if skip is not None and not (isinstance(skip, list) and all(isinstance(each, str) for each in skip)):
        raise fields.refused("skip", skip, "a list of ids of questions")
    if skip and len(skip) > MAX_SKIPPED:
        raise refusal("skip", f"skip with {len(skip):,} ids", expected=f"at most {MAX_SKIPPED:,}")
    fields.finish()
    return Asked(model, tuple(skip or ()))


def _finish(fields: Fields, choice: Choice) -> ChoiceLesson:
    model = _needed(fields, "model")
    fields.finish()
    return ChoiceLesson(model, choice)


def _prompt(fields: Fields) -> Prompt:
    """A chat's messages; or a text, for a base without a chat template."""
    messages, text = fields.value("messages"), fields.text("prompt")
    if text is not None:
        if messages is not None:
            raise refusal("messages", "messages beside prompt", expected="one of them")
        return text
    if not isinstance(messages, list):
        raise fields.refused_by_type("messages", messages, 'a list such as [{"role": "user", "content": "Hello"}]')
    return messages


def _reply(fields: Fields, name: str) -> str:
    text = fields.value(name)
    if not isinstance(text, str) or not text.strip():
        raise refusal(
            name, f"{name} of type {type(text).__name__}" if text else f"no {name}", expected="a reply's text"
        )
    return text


def _needed(fields: Fields, name: str) -> str:
    text = fields.text(name)
    if text is None:
        raise fields.refused(name, None, "a string")
    return text

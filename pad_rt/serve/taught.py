"""People whom a server comes to know by their choices between replies."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from pad_rt.api.error import ApiError, refusal, to_api_error, unavailable
from pad_rt.api.guidance import Guidance
from pad_rt.api.lesson import AnswerLesson, Asked, ChoiceLesson
from pad_rt.api.people import may_name_a_person
from pad_rt.serve.models import Models, ServedModel
from pad_rt.serve.taste_store import TasteStore
from pad_rt.taste.features import persrms_digest, taste_features
from pad_rt.taste.interview import Interview
from pad_rt.taste.question import Question
from pad_rt.taste.reply_pool import usual_prompts
from pad_rt.taste.taste import Taste
from pad_runtime.errors import DeviceError, PadError, TasteError

T = TypeVar("T")
_MAX_REMEMBERED = 1024  # people whose weights are at hand


class TaughtPeople:
    """Teaches and recalls people. Their names are the `user` of a body, their answers are in a store.

    Lessons are taken one at a time, beside the replies that run.

    Args:
        store: of the answers.
        models: that are served.
        max_waiting: lessons that may wait; further ones get 429.
    """

    def __init__(self, store: TasteStore, models: Models, max_waiting: int) -> None:
        self._store, self._models, self._max_waiting = store, models, max_waiting
        self._interviews: dict[str, Interview] = {}  # by the bundle's fingerprint
        self._remembered: OrderedDict[tuple[str, str], tuple[int, Guidance]] = OrderedDict()
        self._lesson, self._num_waiting = asyncio.Lock(), 0

    async def guidance(self, model: ServedModel, person: str | None) -> Guidance | None:
        """What a person's choices tell a model; None for a person who made none.

        Raises:
            ApiError: the store does not answer (503).
        """
        if person is None or not may_name_a_person(person):
            return None
        return await self._in_thread(lambda: self._recall(model, person))

    async def learn(self, person: str, lesson: ChoiceLesson) -> dict[str, Any]:
        """Learn from a choice; what is believed then.

        Raises:
            ApiError: here and below: what was given is refused, too many lessons wait, or the store does not answer.
        """
        model = await self._model(lesson.model, person)
        async with self._turn():
            return await self._in_thread(lambda: self._teach(model, person, lesson.choice.teach))

    async def answer(self, person: str, lesson: AnswerLesson) -> dict[str, Any]:
        """Learn from an answer; what is believed then."""
        model = await self._model(lesson.model, person)

        def learn(taste: Taste) -> bool:
            question = self._interview(model).find(model.generator, lesson.question)
            if question is None:
                message = f"no question {lesson.question!r:.80} of this model; ask for one with POST .../ask"
                raise ApiError(404, "invalid_request_error", "question_not_found", "question", message)
            return taste.answer(question, lesson.answer)

        async with self._turn():
            return await self._in_thread(lambda: self._teach(model, person, learn))

    async def ask(self, person: str, asked: Asked) -> dict[str, Any]:
        """The question whose answer would tell most."""
        model = await self._model(asked.model, person)
        async with self._turn():
            return await self._in_thread(lambda: self._ask(model, person, asked.skip))

    async def describe(self, person: str, model_name: str | None) -> dict[str, Any]:
        """What is believed of a person."""
        if model_name is None:
            raise refusal("model", "no model", expected="the name of a model, as in ?model=bundle")
        model = await self._model(model_name, person)
        return await self._in_thread(lambda: _describe(model, person, self._taste(model, person, is_new=False)))

    async def delete(self, person: str) -> dict[str, Any]:
        """Forget a person, with all models."""
        _check(person)
        number = await self._in_thread(lambda: self._store.delete(person))
        for key in [key for key in self._remembered if key[1] == person]:
            self._remembered.pop(key, None)
        return {"object": "pad.person.deleted", "name": person, "deleted": number > 0, "answers": number}

    def close(self) -> None:
        """Write no further questions, and close the store."""
        for interview in self._interviews.values():
            interview.close()
        self._store.close()

    # -- on another thread --------------------------------------------------------------------------------------------

    def _recall(self, model: ServedModel, person: str) -> Guidance | None:
        digest = persrms_digest(model.generator.manifest)
        last = self._store.last(person, digest)
        if last is None:
            return None
        key = digest, person
        known = self._remembered.get(key)
        if known is None or known[0] != last:
            weights = self._taste(model, person, is_new=False).preference().weights
            known = last, Guidance(weights=dict(weights))
        self._remembered[key] = known
        self._remembered.move_to_end(key)
        while len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return known[1]

    def _teach(self, model: ServedModel, person: str, learn: Callable[[Taste], bool]) -> dict[str, Any]:
        taste = self._taste(model, person, is_new=True)
        learned = learn(taste)
        if learned:
            self._store.add(person, persrms_digest(model.generator.manifest), taste.answers[-1])
        return {**_describe(model, person, taste), "learned": learned}

    def _ask(self, model: ServedModel, person: str, skip: Sequence[str]) -> dict[str, Any]:
        taste, interview = self._taste(model, person, is_new=True), self._interview(model)
        question = interview.ask(
            model.generator, taste, taste.num_answers + len(skip), skip=[key.partition("-")[2] for key in skip]
        )
        told = None if question is None else {**_question(question), "id": interview.key(question)}
        return {"object": "pad.question", "model": model.id, "name": person, "question": told}

    def _taste(self, model: ServedModel, person: str, *, is_new: bool) -> Taste:
        """Of a person; someone unknown is refused, or begins."""
        kept = self._store.read(person, persrms_digest(model.generator.manifest))
        if kept is None and not is_new:
            message = f"nobody named {person!r} has taught this model anything"
            raise ApiError(404, "invalid_request_error", "person_not_found", None, message)
        return Taste(model.generator, answers=() if kept is None else kept.differences)

    def _interview(self, model: ServedModel) -> Interview:
        """Of a bundle, whether or not it was loaded anew."""
        if model.fingerprint not in self._interviews:
            self._interviews[model.fingerprint] = Interview(usual_prompts())
        return self._interviews[model.fingerprint]

    # -- around it ----------------------------------------------------------------------------------------------------

    async def _model(self, name: str, person: str) -> ServedModel:
        """A model that has features to be taught."""
        _check(person)
        model = await self._models.get(name)
        try:
            taste_features(model.generator.manifest)
        except TasteError as error:
            raise refusal("model", str(error)) from error
        return model

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One lesson at a time; those that wait hold no thread."""
        if self._num_waiting > self._max_waiting:
            raise ApiError(429, "rate_limit_error", "queue_full", None, "too many lessons wait already", 1)
        self._num_waiting += 1
        try:
            async with self._lesson:
                yield
        finally:
            self._num_waiting -= 1

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(call)
        except ApiError:
            raise
        except SQLAlchemyError as error:
            raise unavailable("store_unavailable", "the database of what people like does not answer") from error
        except DeviceError as error:
            raise refusal("model", "a model on a device that cannot score", expected="CPU or CUDA") from error
        except PadError as error:
            raise to_api_error(error, prompt="messages", options={}) from error


def _check(person: str) -> None:
    if not may_name_a_person(person):
        raise refusal("name", f"a person named {person!r:.80}", expected="up to 64 characters, no spaces and no colons")


def _describe(model: ServedModel, person: str, taste: Taste) -> dict[str, Any]:
    """What is believed, for a body; numbers to four digits."""
    agreement = taste.agreement()
    return {
        "object": "pad.person",
        "name": person,
        "model": model.id,
        "answers": taste.num_answers,
        "weights": {name: _rounded(asdict(estimate)) for name, estimate in taste.uncertainty().items()},
        "agreement": None if agreement is None else _rounded(asdict(agreement)),
    }


def _question(question: Question) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question.prompt}],
        "a": question.a,
        "b": question.b,
        "cut": list(question.cut),
        "bits": None if math.isnan(question.bits) else round(question.bits, 4),
    }


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in numbers.items()}

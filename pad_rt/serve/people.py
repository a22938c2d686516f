"""The endpoints under /v1/people, which teach and recall people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pad_rt.api.error import ApiError
from pad_rt.api.json_text import parse, write
from pad_rt.api.lesson import CHOICES, read_answer, read_asked
from pad_rt.serve.completions import json_body
from pad_rt.serve.logs import record_of
from pad_rt.serve.models import Models

if TYPE_CHECKING:
    from pad_rt.serve.taught import TaughtPeople

Act = Callable[[str, object], Awaitable[dict[str, Any]]]  # with a person's name and a body


def open_people(place: str, models: Models, max_waiting: int) -> TaughtPeople:
    """The people of a server that learns; apart, because SQLAlchemy takes 20 MiB that other servers need not have.

    Raises:
        OptionError: the database cannot be opened.
    """
    from pad_rt.serve.taste_store import TasteStore
    from pad_rt.serve.taught import TaughtPeople

    return TaughtPeople(TasteStore(place), models, max_waiting)


def people_routes(people: TaughtPeople | None) -> list[Route]:
    """The routes; None: the server learns nothing, and says so.

    Args:
        people: who is taught.
    """
    if people is None:
        return [Route("/v1/people/{rest:path}", _refuse, methods=["GET", "POST", "DELETE"])]
    acts: dict[str, Act] = {
        "ask": lambda name, body: people.ask(name, read_asked(body)),
        "answer": lambda name, body: people.answer(name, read_answer(body)),
        **{word: _learn(people, word) for word in CHOICES},
    }

    async def show(request: Request) -> Response:
        return _json(await people.describe(_person(request), request.query_params.get("model")))

    async def delete(request: Request) -> Response:
        return _json(await people.delete(_person(request)))

    return [
        *(Route(f"/v1/people/{{name}}/{word}", _post(act), methods=["POST"]) for word, act in acts.items()),
        Route("/v1/people/{name}", show, methods=["GET"]),
        Route("/v1/people/{name}", delete, methods=["DELETE"]),
    ]


def _learn(people: TaughtPeople, word: str) -> Act:
    return lambda name, body: people.learn(name, CHOICES[word](body))


def _post(act: Act) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return _json(await act(_person(request), parse(await json_body(request))))

    return endpoint


async def _refuse(_: Request) -> Response:
    message = "this server learns nothing of people; start it with --learn FILE"
    raise ApiError(404, "invalid_request_error", "not_learning", None, message)


def _person(request: Request) -> str:
    """The name in the path, noted for the log."""
    name: str = request.path_params["name"]
    record_of(request.scope).person = name
    return name


def _json(value: dict[str, Any]) -> Response:
    return Response(write(value), media_type="application/json")

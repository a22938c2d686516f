"""The server as an ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pad_rt.api.chat_request import read_chat_request
from pad_rt.api.completion_request import read_completion_request
from pad_rt.api.error import ApiError
from pad_rt.api.json_text import write
from pad_rt.serve import guards
from pad_rt.serve.completions import Completions, note
from pad_rt.serve.line_writer import LineWriter
from pad_rt.serve.logs import RequestLog, record_of
from pad_rt.serve.metrics import Metrics
from pad_rt.serve.models import LoadedModels, Models, unknown_model
from pad_rt.serve.page import read_page
from pad_rt.serve.people import open_people, people_routes
from pad_rt.serve.readiness import Readiness
from pad_rt.serve.settings import ServeSettings

if TYPE_CHECKING:
    from pad_rt.serve.taught import TaughtPeople

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(settings: ServeSettings, models: Models | None = None) -> Starlette:
    """The app. It loads its models when it is started; `app.state.readiness` says how far it is.

    Args:
        settings: of the server.
        models: that are served; None: the settings' bundles and people.

    Raises:
        OptionError: a file of people or the database that learns cannot be opened, or two bundles have one name.
    """
    served: Models = LoadedModels.of(settings) if models is None else models
    people = None if settings.learn is None else open_people(settings.learn, served, settings.max_waiting)
    readiness, metrics, lines = Readiness(), Metrics(), LineWriter()

    async def load() -> None:
        await served.open()
        for model in served.served():
            if model.person is None:
                generator = model.generator
                metrics.watch(
                    model.name,
                    running=partial(getattr, generator, "num_running"),
                    waiting=partial(getattr, generator, "num_waiting"),
                )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(readiness.load(load))
        try:
            yield
        finally:
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
            if people is not None:
                people.close()
            await asyncio.to_thread(served.close)
            await asyncio.to_thread(lines.close)

    app = Starlette(
        routes=_routes(settings, served, metrics, people),
        middleware=guards.middleware(settings, readiness, metrics, RequestLog(settings, lines)),
        exception_handlers={ApiError: _tell, HTTPException: _tell_http},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # it redirects to http://, also behind a proxy that speaks TLS
    app.state.readiness, app.state.models = readiness, served
    return app


def _routes(settings: ServeSettings, models: Models, metrics: Metrics, people: TaughtPeople | None) -> list[BaseRoute]:
    def described() -> list[dict[str, Any]]:
        return [{**entry, "pad": {**entry["pad"], "learns": people is not None}} for entry in models.describe()]

    async def list_models(_: Request) -> Response:
        return _json({"object": "list", "data": described()})

    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        for entry in described():
            if entry["id"] == name:
                return _json(entry)
        raise unknown_model(name)

    async def health(_: Request) -> Response:
        return _json({"status": "ok"})

    async def expose_metrics(_: Request) -> Response:
        return Response(metrics.exposition(), headers={"content-type": metrics.CONTENT_TYPE})

    async def show_page(_: Request) -> Response:
        page, headers = read_page()
        return Response(page, headers=headers)

    routes: list[BaseRoute] = [
        Route("/v1/chat/completions", Completions(read_chat_request, models, settings, people), methods=["POST"]),
        Route("/v1/completions", Completions(read_completion_request, models, settings, people), methods=["POST"]),
        *people_routes(people),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", show_model),
        Route("/health", health),
        Route("/metrics", expose_metrics),
    ]
    return routes if settings.no_page else [*routes, Route("/", show_page)]


async def _tell(request: Request, error: Exception) -> Response:
    """An error in OpenAI's shape."""
    assert isinstance(error, ApiError)
    note(error, record_of(request.scope))
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return _json(error.body, status=error.status, headers=headers)


async def _tell_http(request: Request, error: Exception) -> Response:
    """An error of the routing: no such path, or no such method."""
    assert isinstance(error, HTTPException)
    code, message = _CODES.get(error.status_code), f"{request.method} of this path: {error.detail.lower()}"
    known = ApiError(error.status_code, "invalid_request_error", code, None, message)
    return _json(known.body, status=known.status, headers=dict(error.headers or {}))


def _json(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(write(value), status, headers, media_type="application/json")

"""The endpoints that generate: a body is read, its requests are queued, and the reply goes out whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pad_rt.api.error import ApiError, unavailable
from pad_rt.api.guidance import Guidance
from pad_rt.api.json_text import parse, write
from pad_rt.api.reply import Reply
from pad_rt.api.request import ApiRequest
from pad_rt.engine.tasks import events_of, queue
from pad_rt.engine.ticket import Event, Ticket
from pad_rt.serve.logs import RequestRecord, record_of
from pad_rt.serve.models import Models, ServedModel
from pad_rt.serve.settings import ServeSettings
from pad_rt.serve.stream import EventStream

if TYPE_CHECKING:
    from pad_rt.serve.taught import TaughtPeople

Arrivals: TypeAlias = AsyncGenerator[tuple[int, Event] | None]  # events with their choice; None: nothing for a while
_LOOK_EVERY_S = 1.0  # at the time limits


class Completions:
    """An endpoint, as an ASGI app.

    Args:
        read: reads the body.
        models: that are served.
        settings: limits on time and tokens.
        people: whom the field "user" may name; None: nobody.
    """

    def __init__(
        self,
        read: Callable[[object], ApiRequest],
        models: Models,
        settings: ServeSettings,
        people: TaughtPeople | None = None,
    ) -> None:
        self._read, self._models, self._settings, self._people = read, models, settings, people

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply to one request.

        Raises:
            ApiError: before anything was sent.
        """
        record, stream = record_of(scope), EventStream(send)
        try:
            asked = self._read(parse(await json_body(Request(scope, receive))))
            model = await self._models.get(asked.model)
            record.model, record.person, record.user = model.name, model.person, asked.user
            record.prompt = asked.prompts
            person = model.guidance
            if self._people is not None and (taught := await self._people.guidance(model, asked.user)):
                person = taught if person is None else person.over(taught)
            reply, tickets = await self._submit(asked, model, person)
            try:
                async with aclosing(self._arrivals(asked, tickets, receive)) as arrivals:
                    if asked.stream:
                        await _send_stream(reply, arrivals, stream)
                    else:
                        body = await _whole(reply, arrivals)
                        await Response(body, media_type="application/json")(scope, receive, send)
            finally:
                record.reply, record.replies = reply.texts, reply.ends
        except ClientDisconnect:
            return
        except ApiError as error:
            if not stream.has_begun:
                raise
            note(error, record)
            record.status = error.status
            await stream.put([error.body])
            await stream.end(is_whole=False)

    async def _submit(
        self, asked: ApiRequest, model: ServedModel, person: Guidance | None
    ) -> tuple[Reply, list[Ticket]]:
        limit, explains = self._settings.max_new_tokens, bool(asked.guidance_of(person).explain)
        tickets = await queue(lambda: asked.submit(model.generator, person, max_new_tokens=limit))
        return Reply(asked, model.generator, model.id, explains=explains, fingerprint=model.fingerprint), tickets

    async def _arrivals(self, asked: ApiRequest, tickets: Sequence[Ticket], receive: Receive) -> Arrivals:
        """The events of all tickets; None after each pause, once one of them has a place in the batch.

        Raises:
            ApiError: a request failed, a time limit has passed, or the server ended the requests.
            ClientDisconnect: the client went away.
        """
        settings, num_going = self._settings, len(tickets)
        pause = min(_LOOK_EVERY_S, settings.keepalive, settings.queue_timeout, settings.request_timeout)
        called = told = time.monotonic()
        async with _watch(receive, tickets) as client, aclosing(events_of(tickets, pause=pause)) as arrivals:
            try:
                async for arrival in arrivals:
                    now = time.monotonic()
                    was_admitted = any(ticket.was_admitted for ticket in tickets)
                    if now - called > settings.request_timeout:
                        raise _too_late("request_timeout", "whole reply", settings.request_timeout)
                    if now - called > settings.queue_timeout and not was_admitted:
                        raise _too_late("queue_timeout", "place in the batch", settings.queue_timeout)
                    if arrival is not None or (was_admitted and now - told >= settings.keepalive):
                        told = now
                        yield arrival
                    num_going -= arrival is not None and arrival[1].finish_reason is not None
            except ApiError:
                raise
            except Exception as error:
                raise asked.to_api_error(error) from error
        if num_going and client.is_gone:
            raise ClientDisconnect
        if num_going:
            raise unavailable("cancelled", "the server ended this request")


async def _whole(reply: Reply, arrivals: Arrivals) -> bytes:
    """The body of a whole reply."""
    events: list[list[Event]] = [[] for _ in reply.texts]
    async for arrival in arrivals:
        if arrival is not None:
            events[arrival[0]].append(arrival[1])
    return write(await asyncio.to_thread(reply.whole, events))


async def _send_stream(reply: Reply, arrivals: Arrivals, stream: EventStream) -> None:
    async for arrival in arrivals:
        if not stream.has_begun:
            await stream.begin()
            await stream.put(reply.opening())
        if arrival is None:
            await stream.keep_alive()
        else:
            await stream.put(reply.chunk(*arrival))
    await stream.put(reply.closing())
    await stream.end(is_whole=True)


def note(error: ApiError, record: RequestRecord) -> None:
    """Let the log know why the server failed."""
    if error.status >= 500 and isinstance(error.__cause__, Exception):
        record.error = error.__cause__


def _too_late(code: str, what: str, seconds: float) -> ApiError:
    return unavailable(code, f"no {what} within {seconds:g} seconds")


class _Client:
    """Whoever waits for the reply.

    Attributes:
        is_gone: the connection was closed.
    """

    def __init__(self) -> None:
        self.is_gone = False

    async def wait_until_gone(self, receive: Receive, tickets: Sequence[Ticket]) -> None:
        """Cancel the tickets when the client goes away."""
        with suppress(Exception):  # a proxy of Ray's that is gone with its client is an error
            while (await receive())["type"] != "http.disconnect":
                pass
        self.is_gone = True
        for ticket in tickets:
            ticket.cancel()


@asynccontextmanager
async def _watch(receive: Receive, tickets: Sequence[Ticket]) -> AsyncIterator[_Client]:
    """The client, watched as long as its reply is made."""
    client = _Client()
    watching = asyncio.create_task(client.wait_until_gone(receive, tickets))
    try:
        yield client
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def json_body(request: Request) -> bytes:
    """The body of a request in JSON; a page of another origin cannot send one of this type unasked.

    Raises:
        ApiError: another content type.
        ClientDisconnect: it was not sent whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = "the content type is not application/json; send a JSON object with that content type"
        raise ApiError(415, "invalid_request_error", "unsupported_media_type", None, message)
    return await request.body()

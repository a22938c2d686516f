"""Tickets for asyncio; apart, because asyncio takes 4 MiB that an app without tasks need not have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from pad_rt.engine.ticket import Event, Ticket
from pad_rt.result import GenerationResult
from pad_runtime.cancellation import Cancellation


async def queue(submit: Callable[[], list[Ticket]]) -> list[Ticket]:
    """Queue requests on another thread, where they may wait for a place."""
    left = Cancellation()

    def submit_unless_left() -> list[Ticket]:
        tickets = submit()
        for ticket in tickets:
            left.on_want(ticket.cancel)
        return tickets

    try:
        return await asyncio.to_thread(submit_unless_left)
    except BaseException:  # the task was cancelled, and the other thread goes on
        left.want()
        raise


async def events_of(
    tickets: Sequence[Ticket], *, pause: float | None = None
) -> AsyncGenerator[tuple[int, Event] | None]:
    """The events of tickets as they come, each with its ticket's place; all are cancelled when nobody takes any more.

    Args:
        tickets: that go on side by side.
        pause: seconds without an event behind which None comes; None: never.
    """
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(news.set)

    for ticket in tickets:
        ticket.listen(tell)
    going = dict(enumerate(tickets))
    try:
        while going:
            try:
                await asyncio.wait_for(news.wait(), pause)
            except TimeoutError:
                yield None
                continue
            news.clear()
            for place, ticket in list(going.items()):
                has_ended = ticket.has_ended  # then all its events are there
                while (event := ticket.poll()) is not None:
                    yield place, event
                if has_ended:
                    del going[place]
                    next(ticket, None)  # raises what it failed by
    finally:
        for ticket in tickets:
            ticket.cancel()


async def result_of(ticket: Ticket) -> GenerationResult:
    """The whole reply, once it has ended."""
    async for _ in events_of([ticket]):
        pass
    return await asyncio.to_thread(ticket.result)

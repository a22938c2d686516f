"""Tickets for asyncio; apart, because asyncio takes 4 MiB that an app without tasks need not have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from pad_rt.engine.ticket import Event, Ticket
from pad_rt.result import GenerationResult
from pad_runtime.cancellation import Cancellation


async def queue(submit: Callable[[], Ticket]) -> Ticket:
    """Queue a request on another thread, where it may wait for a place."""
    left = Cancellation()

    def submit_unless_left() -> Ticket:
        ticket = submit()
        left.on_want(ticket.cancel)
        return ticket

    try:
        return await asyncio.to_thread(submit_unless_left)
    except BaseException:  # the task was cancelled, and the other thread goes on
        left.want()
        raise


async def events_of(ticket: Ticket) -> AsyncIterator[Event]:
    """The events of a ticket, which is cancelled when nobody takes them any more."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(news.set)

    ticket.listen(tell)
    try:
        while True:
            await news.wait()
            news.clear()
            while (event := ticket.poll()) is not None:
                yield event
            if ticket.has_ended:
                break
        for event in ticket:
            yield event
    finally:
        ticket.cancel()


async def result_of(ticket: Ticket) -> GenerationResult:
    """The whole reply, once it has ended."""
    async for _ in events_of(ticket):
        pass
    return await asyncio.to_thread(ticket.result)

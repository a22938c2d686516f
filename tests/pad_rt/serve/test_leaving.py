"""Clients that go away: their slots are free within a step, whatever they asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from pad_rt.engine.ticket import Ticket
from tests.pad_rt.serve.conftest import END
from tests.support.gated_engine import Gate
from tests.support.live_server import LiveServer, wait_until

BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "a"}],
    "max_tokens": 400,
    "logit_bias": {str(END): -100},  # no sample ends before its client leaves
}


@pytest.fixture
def gate(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(server.generator, monkeypatch)
    yield gate
    gate.open()
    wait_until(server.is_idle)


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Is released whenever a ticket is cancelled."""
    noted, cancel = threading.Semaphore(0), Ticket.cancel

    def noting(ticket: Ticket) -> None:
        cancel(ticket)
        noted.release()

    monkeypatch.setattr(Ticket, "cancel", noting)
    return noted


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1),
        ({"stream": True}, 1),
        ({"stream": True, "pad": {"weights": {"kind": 1.0}, "explain": True}}, 1),
        ({"n": 3}, 3),
        ({"n": 3, "stream": True}, 3),
    ],
)
def test_a_slot_is_free_within_a_step(
    server: LiveServer, gate: Gate, cancelled: threading.Semaphore, options: dict[str, Any], count: int
) -> None:
    """The step that runs when the server hears of it is the last one."""
    connection = server.open("/v1/chat/completions", BODY | options)
    gate.let(5)
    wait_until(lambda: gate.num_begun == 6)
    assert server.generator.num_running == count
    if options.get("stream"):
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()
    for _ in range(count):
        assert cancelled.acquire(timeout=60)
    assert gate.num_begun == 6
    gate.let(1)
    wait_until(server.is_idle)
    assert gate.num_begun == 6


def test_a_client_that_stays_keeps_its_slot(server: LiveServer, gate: Gate) -> None:
    connection = server.open("/v1/chat/completions", BODY | {"stream": True})
    gate.let(6)
    wait_until(lambda: gate.num_begun == 7)
    assert server.generator.num_running == 1
    connection.close()


def test_a_client_that_leaves_the_queue(server: LiveServer, gate: Gate) -> None:
    """Three run, and two wait; one of these goes."""
    running = server.open("/v1/chat/completions", BODY | {"n": 3})
    wait_until(lambda: gate.num_begun == 1)
    waiting = [server.open("/v1/chat/completions", BODY | {"stream": True}) for _ in range(2)]
    wait_until(lambda: server.generator.num_waiting == 2)
    waiting[0].close()
    gate.let(2)
    wait_until(lambda: server.generator.num_waiting == 1)
    assert server.generator.num_running == 3
    running.close()
    waiting[1].close()


def test_what_others_get_is_not_touched(server: LiveServer) -> None:
    """Clients that leave at any time, beside one that stays."""
    body = {**BODY, "max_tokens": 60, "temperature": 0, "logit_bias": {}}
    expected = server.generator.generate("a", config={"max_new_tokens": 60}).text
    for number in range(6):
        leaving = server.open("/v1/chat/completions", BODY | {"stream": number % 2 == 0, "seed": number})
        if number % 3:
            leaving.settimeout(0.01)
            with suppress(TimeoutError):
                leaving.recv(1000)
        leaving.close()
        answer = server.post("/v1/chat/completions", body)
        assert answer.json()["choices"][0]["message"]["content"] == expected
    wait_until(server.is_idle)

"""The log: one JSON object a request, without what was asked and said."""

from __future__ import annotations

import io
import json
import os
import threading
from datetime import datetime
from typing import Any

import pytest

from pad_rt.result import Timing, Usage
from pad_rt.serve.line_writer import LineWriter
from pad_rt.serve.logs import RequestLog, RequestRecord
from pad_rt.serve.settings import ServeSettings

STOP = (Usage(10, 4, 6), Timing(0.25, 0.5, 0.75, 0.1, 0.0, 9.0, 8), "stop")
LENGTH = (Usage(10, 5, 0), Timing(0.5, 0.125, 0.625, 0.1, 0.0, 9.0, 8), "length")


def line_of(record: RequestRecord, **settings: Any) -> dict[str, Any]:
    stream = io.StringIO()
    RequestLog(ServeSettings(**settings), stream).write(record)
    text = stream.getvalue()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    assert text.isascii(), "no terminal takes a character of it for a command"
    line: dict[str, Any] = json.loads(text)
    return line


def a_record(**given: Any) -> RequestRecord:
    return RequestRecord("the-id", "POST", "/v1/chat/completions", **given)


def test_the_line_of_a_reply() -> None:
    line = line_of(a_record(status=200, total_s=1.25, model="m", person="anna", user="u-1", replies=[STOP]))
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "id": "the-id",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "m",
        "person": "anna",
        "user": "u-1",
        "prompt_tokens": 10,
        "cached_tokens": 6,
        "completion_tokens": 4,
        "queue_s": 0.25,
        "first_token_s": 0.75,
        "finish_reason": "stop",
        "total_s": 1.25,
    }


def test_the_line_of_several_choices() -> None:
    """Tokens of all, the longest waits, and each one's end."""
    line = line_of(a_record(status=200, replies=[STOP, LENGTH]))
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (20, 6, 9)
    assert (line["queue_s"], line["first_token_s"], line["finish_reason"]) == (0.5, 0.75, ["stop", "length"])


def test_the_line_of_a_refusal() -> None:
    assert set(line_of(a_record(status=401))) == {"time", "id", "method", "path", "status", "total_s"}


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_logged_if_asked_for(log_prompts: bool) -> None:
    try:
        raise ValueError("of a prompt")
    except ValueError as raised:
        error = raised
    given = a_record(prompt=[{"role": "user", "content": "東京 \ud800\n\x1b"}], reply=["a reply"], error=error)
    line = line_of(given, log_prompts=log_prompts)
    assert line["error"].startswith(f"ValueError in {__name__}, line ")
    assert ("prompt" in line, "reply" in line, "traceback" in line) == (log_prompts,) * 3
    assert ("of a prompt" in str(line)) == log_prompts
    if log_prompts:
        assert (line["prompt"], line["reply"]) == (given.prompt, given.reply)


def test_what_a_client_chose_is_cut() -> None:
    record = RequestRecord("id", "GET", "/" + "é\n" * 1000, user="u" * 1000)
    line = line_of(record)
    assert (len(line["path"]), len(line["user"])) == (203, 203)
    assert line["path"].startswith("/é\n")


def test_a_reader_who_stalls_holds_up_nobody() -> None:
    """A pipe takes 64 KiB; what comes beyond waits for the reader."""
    reading, writing = os.pipe()
    lines = LineWriter(writing)
    expected = [f"{number:01000d}\n" for number in range(300)]
    for line in expected:
        lines.write(line)
    with os.fdopen(reading, encoding="ascii") as reader:
        assert [reader.readline() for _ in expected] == expected
        lines.close()
        os.close(writing)
        assert reader.read() == ""


def test_lines_beyond_those_that_may_wait_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_rt.serve.line_writer._MAX_WAITING", 10)
    reading, writing = os.pipe()
    lines = LineWriter(writing)
    for _ in range(1000):
        lines.write("x" * 999 + "\n")
    found = list[str]()

    def read() -> None:
        with os.fdopen(reading, encoding="ascii") as file:
            found.extend(file)

    reader = threading.Thread(target=read)
    reader.start()
    lines.close(60)
    os.close(writing)
    reader.join()
    assert 10 <= len(found) < 1000
    assert set(found) == {"x" * 999 + "\n"}


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = LineWriter(writing)
    RequestLog(ServeSettings(), lines).write(a_record())
    lines.close()
    os.close(writing)

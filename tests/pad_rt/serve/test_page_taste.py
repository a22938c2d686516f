"""The page of a server that learns, in a real browser: choices between replies, questions, and what is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pad_rt import Taste
from tests.support import tiny_bundles
from tests.support.browser import CHROMIUM, Page, opened
from tests.support.contrast import LEAST, contrasts
from tests.support.fake_chat_server import (
    DONE,
    Answer,
    FakeServer,
    chunk,
    model,
    refusal,
    serving,
    streamed,
    whole,
)
from tests.support.live_server import serve, wait_until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

HOSTILE = "</script><img src=x onerror='hit = 1'>"
KNOWN = {
    "object": "pad.person",
    "name": "anna b",
    "model": "tiny",
    "answers": 3,
    "weights": {"kind": {"mean": 0.254, "low": -0.1, "high": 0.6}, "brief": {"mean": -0.5, "low": -0.9, "high": -0.2}},
    "agreement": None,
}
QUESTION = {
    "id": "0-ab",
    "messages": [{"role": "user", "content": "Why?"}],
    "a": f"Because {HOSTILE}",
    "b": "So it is.",
    "cut": [True, False],
    "bits": 0.4,
}


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving() as fake:
        fake.models = whole({"object": "list", "data": [model(learns=True)]})
        yield fake


def either(body: dict[str, Any]) -> Answer:
    guided = "weights" in body["pad"]
    return streamed(chunk("Hello!" if guided else "It is."), chunk(finish="length" if guided else "stop"), DONE)


def name(page: Page, text: str) -> None:
    page.wait_for("models.length > 0")
    page.click("#me")
    page.write(text)
    page.press("Enter", 13)


def say(page: Page, question: str) -> None:
    page.click("#message")
    page.write(question)
    page.press("Enter", 13)
    page.wait_for("running().length === 0")


def likes(page: Page) -> list[bool]:
    """Whether the base's reply and the guided one of the last turn may be chosen."""
    found: list[bool] = page.evaluate("['base', 'guided'].map((side) => !turns.at(-1)[side].like.disabled)")
    return found


def bar(page: Page, place: int) -> list[str]:
    """Where the range of a feature's weight begins and ends."""
    found: list[str] = page.evaluate(
        f"""((belief) => belief.hidden ? [] : ["--low", "--high"].map((end) => belief.style.getPropertyValue(end)))
            (document.querySelectorAll(".belief")[{place}])"""
    )
    return found


def test_a_server_that_does_not_learn_asks_for_no_name(fake: FakeServer, tmp_path: Path) -> None:
    fake.models = whole({"object": "list", "data": [model(learns=False)]})
    fake.reply = either
    with opened(fake.url, tmp_path) as page:
        page.wait_for("models.length > 0")
        assert page.evaluate("find('taste').hidden")
        say(page, "Why?")
        assert likes(page) == [False, False]


def test_this_one_teaches_and_moves_the_sliders(fake: FakeServer, tmp_path: Path) -> None:
    taught: list[tuple[str, Any]] = []

    def people(path: str, body: Any) -> Answer:
        taught.append((path, body))
        return whole(KNOWN) if body else refusal("nobody", 404)

    fake.reply, fake.people = either, people
    with opened(fake.url, tmp_path) as page:
        name(page, " anna b ")
        page.wait_for("find('known').textContent.startsWith('Nothing is known')")
        assert bar(page, 0) == []
        say(page, "Why?")
        assert likes(page) == [True, True]
        page.click("[data-side=guided] .bar button:nth-of-type(2)")
        page.wait_for("believed !== null")
        assert taught == [
            ("anna%20b?model=tiny", None),
            (
                "anna%20b/prefer",
                {
                    "model": "tiny",
                    "messages": [{"role": "user", "content": "Why?"}],
                    "better": "Hello!",
                    "worse": "It is.",
                    "ended": False,
                },
            ),
        ]
        assert likes(page) == [False, False], "a pair is compared once"
        assert page.evaluate("weights") == {"kind": 0.25, "brief": -0.5}
        assert bar(page, 0) == ["45%", "80%"]
        assert bar(page, 1) == ["5%", "40%"]
        assert page.evaluate("document.querySelector('#sliders input').getAttribute('aria-valuetext')") == (
            "+0.25, known to be from \u22120.10 to +0.60"
        )
        assert "Learned from 3 choices." in page.evaluate("find('known').textContent")
        assert not page.evaluate("find('again').disabled"), "the guided side would be asked in other words now"
        say(page, "And now?")
        assert likes(page) == [False, False], "each side has its own conversation behind it"


def test_questions_are_asked_until_enough(fake: FakeServer, tmp_path: Path) -> None:
    taught: list[tuple[str, Any]] = []

    def people(path: str, body: Any) -> Answer:
        taught.append((path, body))
        if path == "anna/ask":
            return whole({"question": QUESTION if len(taught) < 6 else None})
        return whole(KNOWN) if path == "anna/answer" else refusal("nobody", 404)

    fake.people = people
    with opened(fake.url, tmp_path) as page:
        page.wait_for("models.length > 0")
        assert page.evaluate("find('teach').disabled"), "nobody has said who they are"
        name(page, "anna")
        page.click("#teach")
        page.wait_for("document.querySelectorAll('.asked .text').length === 2")
        texts = page.evaluate("[...document.querySelectorAll('.asked .text')].map((each) => each.textContent)")
        assert texts == [f"Because {HOSTILE} …", "So it is."]
        assert page.evaluate("typeof hit") == "undefined"
        page.click(".asked .reply:nth-child(2) button")
        page.wait_for("believed !== null && document.querySelectorAll('.asked .text').length === 2")
        page.click(".asked .foot button")  # neither
        wait_until(lambda: [path for path, _ in taught].count("anna/ask") == 3)
        assert [body for path, body in taught if path == "anna/ask"] == [
            {"model": "tiny", "skip": []},
            {"model": "tiny", "skip": []},
            {"model": "tiny", "skip": ["0-ab"]},
        ]
        assert [body for path, body in taught if path == "anna/answer"] == [
            {"model": "tiny", "question": "0-ab", "answer": "b"}
        ]
        page.wait_for("document.querySelectorAll('.asked .text').length === 2")
        page.click(".asked .reply:nth-child(1) button")
        page.wait_for("document.querySelector('.asked').textContent === 'Further answers would tell little.'")
        assert page.evaluate("interview") is None


def test_enough_and_failures(fake: FakeServer, tmp_path: Path) -> None:
    fake.people = lambda path, body: whole({"question": QUESTION}) if path == "anna/ask" else refusal("Too late.", 503)
    fake.reply = either
    with opened(fake.url, tmp_path) as page:
        name(page, "anna")
        page.wait_for("find('known').textContent === 'Too late.'")
        page.click("#teach")
        page.wait_for("document.querySelectorAll('.asked .text').length === 2")
        page.click(".asked .foot button:nth-child(2)")  # enough
        page.wait_for("document.querySelector('.asked') === null")
        page.click("#teach")
        page.wait_for("document.querySelectorAll('.asked .text').length === 2")
        page.click(".asked .reply button")
        page.wait_for("document.querySelector('.asked .error')?.textContent === 'Too late.'")
        say(page, "Why?")
        page.click("[data-side=base] .bar button:nth-of-type(2)")
        page.wait_for("find('notice').textContent === 'Too late.'")
        assert likes(page) == [True, True], "the choice may be made again"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (360, 740)], ids=["desktop", "phone"])
def test_it_can_be_read(fake: FakeServer, tmp_path: Path, size: tuple[int, int], dark: bool) -> None:
    fake.people = lambda path, body: whole({"question": QUESTION} if path == "anna/ask" else KNOWN)
    with opened(fake.url, tmp_path, width=size[0], height=size[1], dark=dark) as page:
        name(page, "anna")
        page.wait_for("believed !== null")
        page.evaluate("find('teach').click()")
        page.wait_for("document.querySelectorAll('.asked .text').length === 2")
        for ratio, what in contrasts(page):
            assert ratio >= LEAST, what
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]


def test_before_the_real_server(served_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five answers on the page are five in Python."""
    monkeypatch.setattr("pad_rt.taste.taste.Taste.ask.__kwdefaults__", {"least_bits": 0.0, "skip": ()})
    with (
        serve(tiny_bundles.load(served_bundle), learn=str(tmp_path / "people.db")) as server,
        opened(server.url.removesuffix("v1"), tmp_path / "profile") as page,
    ):
        name(page, "anna")
        page.click("#teach")
        for count in range(1, 6):
            page.wait_for("document.querySelectorAll('.asked .text').length === 2")
            page.click(".asked .reply button")
            page.wait_for(f"believed?.answers === {count}")
        told = server.get("/v1/people/anna?model=tiny").json()
        assert told["answers"] == 5
        assert page.evaluate("believed.weights") == told["weights"]
        assert list(told["weights"]) == list(Taste(server.generator).features)

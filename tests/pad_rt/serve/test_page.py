"""The page in a real browser, before a server that answers what each test has written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    weighed,
    whole,
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

HOSTILE = "</script><img src=x onerror='hit = 1'><b>&amp;"
SIZES = {"desktop": (1280, 800), "phone": (360, 740)}


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving() as fake:
        yield fake


def text(page: Page, selector: str) -> str:
    found: str = page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


def reply(page: Page, side: str, *, turn: int = -1) -> str:
    found: str = page.evaluate(f"turns.at({turn}).{side}.body.innerText")
    return found


def say(page: Page, question: str) -> None:
    page.wait_for("models.length > 0")
    page.click("#message")
    page.write(question)
    page.press("Enter", 13)


def wait_for_replies(page: Page) -> None:
    page.wait_for("turns.length > 0 && running().length === 0")


def is_guided(body: dict[str, Any]) -> bool:
    return bool({"weights", "preference"} & body["pad"].keys())


def told(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def guided(*words: str) -> Answer:
    """A guided reply: words alternate between full orange, full blue and no colour; every second was not the base's."""
    tokens = [
        weighed(word, gain=(3.0, -3.0, 0.0)[place % 3], changed=place % 2 == 0) for place, word in enumerate(words)
    ]
    return streamed(*(chunk(token["text"], pad={"tokens": [token]}) for token in tokens), chunk(finish="stop"), DONE)


def either(body: dict[str, Any]) -> Answer:
    return guided("So", " glad", " you", " asked!") if is_guided(body) else streamed(chunk("It is."), DONE)


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_each_side_is_asked_in_its_own_words_and_goes_on_from_its_own_replies(fake: FakeServer, tmp_path: Path) -> None:
    fake.reply = either
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        wait_for_replies(page)
        say(page, "And now?")
        page.wait_for("turns.length === 2 && running().length === 0")
        assert page.evaluate("message.value") == ""
        bodies = {(is_guided(body), len(body["messages"])): body for body in fake.bodies}
        assert told(bodies[False, 3]) == ["Why?", "It is.", "And now?"]
        assert told(bodies[True, 3]) == ["Why?", "So glad you asked!", "And now?"]
        assert bodies[True, 1] == {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Why?"}],
            "stream": True,
            "temperature": 0,
            "seed": 0,
            "max_tokens": 256,
            "pad": {"weights": {"kind": 1}, "beta": 1, "top_k": 10, "offer_end": True, "explain": True},
        }
        assert bodies[False, 1] == {**bodies[True, 1], "pad": {"top_k": 10}}
        page.click("#fresh")
        assert page.evaluate("document.querySelectorAll('.turn').length") == 0
        page.write("Again,")
        page.press("Enter", 13, shift=True)
        say(page, "please?")
        wait_for_replies(page)
        assert all(told(body) == ["Again,\nplease?"] for body in fake.bodies[-2:])


def test_what_has_changed_is_answered_again(fake: FakeServer, tmp_path: Path) -> None:
    """A slider asks the guided side again, and a temperature both; what is set back offers nothing."""
    fake.reply = either
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        wait_for_replies(page)
        assert page.evaluate("find('again').disabled")
        page.evaluate("document.querySelectorAll('#sliders input')[1].focus()")
        for _ in range(3):
            page.press("ArrowLeft", 37)
        assert text(page, ".slider:nth-child(2) .value") == "\u22120.3"
        assert not page.evaluate("find('again').disabled")
        page.press("0", 48)
        assert text(page, ".slider:nth-child(2) .value") == "0"
        assert page.evaluate("find('again').disabled")
        page.press("End", 35)
        page.press("Enter", 13)
        wait_for_replies(page)
        assert [body["pad"].get("weights") for body in fake.bodies[2:]] == [{"kind": 1, "brief": 1}]
        assert text(page, "[data-side=guided] .made") == "kind +1, brief +1"
        page.click("#settings summary")
        page.evaluate("find('temperature').focus(), find('temperature').select()")
        page.write("0.7")
        page.click("#again")
        wait_for_replies(page)
        assert [body["temperature"] for body in fake.bodies[3:]] == [0.7, 0.7]
        assert page.evaluate("document.querySelectorAll('.turn').length") == 1
        page.click("#live")
        page.click("#sliders input", count=2)
        wait_for_replies(page)
        assert fake.bodies[-1]["pad"]["weights"] == {"brief": 1}, "the click set it to 0 as well"
        page.click("#seed")
        page.press("ArrowUp", 38)
        page.press("Enter", 13, ctrl=True)
        wait_for_replies(page)
        assert [body["seed"] for body in fake.bodies[-2:]] == [1, 1]


@pytest.mark.parametrize("size", SIZES)
def test_the_offer_to_answer_again_is_in_sight(fake: FakeServer, tmp_path: Path, size: str) -> None:
    """However many features there are."""
    fake.models = whole({"data": [model(features=[f"feature {place}" for place in range(30)], reads_words=True)]})
    width, height = SIZES[size]
    with opened(fake.url, tmp_path, width=width, height=height) as page:
        say(page, "Why?")
        wait_for_replies(page)
        page.evaluate("document.querySelector('#sliders input').focus()")
        page.press("End", 35)
        on_top = """(() => {
            const box = find("again").getBoundingClientRect();
            return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2)?.id;
        })()"""
        assert page.evaluate(on_top) == "again"
        page.evaluate("find('strength').style.position = 'static'")
        assert page.evaluate(on_top) != "again", "the control"


def test_sliders_at_zero_ask_the_base_alone(fake: FakeServer, tmp_path: Path) -> None:
    with opened(fake.url, tmp_path) as page:
        page.wait_for("models.length > 0")
        page.click("#sliders input", count=2)
        assert text(page, ".slider .value") == "0"
        say(page, "Why?")
        wait_for_replies(page)
        assert fake.bodies[0] == fake.bodies[1]
        assert reply(page, "guided") == reply(page, "base") == "Hello."


def test_people_set_the_sliders(fake: FakeServer, tmp_path: Path) -> None:
    """To the number, beyond 1 and between tenths; words too, where the model reads them."""
    anna = {
        "weights": {"kind": -1.25, "brief": 0.33},
        "preference": "be kind",
        "beta": 2.5,
        "top_k": 7,
        "offer_end": False,
    }
    listed = [model(reads_words=True), model("tiny:anna", person=anna), model("other", features=["odd"])]
    fake.models = whole({"data": listed})
    with opened(fake.url, tmp_path) as page:
        page.wait_for("models.length > 0")
        assert page.evaluate("[...find('person').options].map((option) => option.text)") == ["yourself", "anna"]
        page.evaluate("find('person').focus()")
        page.press("ArrowDown", 40)
        page.wait_for("find('person').value === 'tiny:anna'")
        say(page, "Why?")
        wait_for_replies(page)
        (body,) = filter(is_guided, fake.bodies)
        assert body["model"] == "tiny"
        assert body["pad"] == {**anna, "explain": True}
        page.evaluate("document.querySelector('#sliders input').focus()")
        page.press("ArrowRight", 39)
        assert page.evaluate("find('person').value") == "", "no longer anna's"
        page.evaluate("find('model').focus()")
        page.press("ArrowDown", 40)
        page.wait_for("find('model').value === 'other'")
        assert page.evaluate("[find('people').hidden, find('wording').hidden, turns.length]") == [True, True, 0]
        say(page, "Why?")
        wait_for_replies(page)
        (body,) = [body for body in fake.bodies if is_guided(body) and body["model"] == "other"]
        assert body["pad"] == {"weights": {"odd": 1}, "beta": 1, "top_k": 10, "offer_end": True, "explain": True}


def test_an_empty_field_is_left_to_the_server(fake: FakeServer, tmp_path: Path) -> None:
    with opened(fake.url, tmp_path) as page:
        page.wait_for("models.length > 0")
        page.evaluate("for (const id of ['temperature', 'seed', 'max_tokens', 'beta', 'top_k']) find(id).value = ''")
        say(page, "Why?")
        wait_for_replies(page)
        (body,) = filter(is_guided, fake.bodies)
        assert body.keys() == {"model", "messages", "stream", "pad"}
        assert body["pad"].keys() == {"weights", "offer_end", "explain"}


# -- while replies come -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_nothing_moves_while_replies_come(fake: FakeServer, tmp_path: Path, size: str) -> None:
    """But the replies grow; and the control, a line that is put above them, is noticed."""
    words = [f" word{place}" for place in range(40)]
    halted = guided(*words).pieces
    fake.reply = lambda body: (
        Answer(tuple(piece for each in halted for piece in (each, None)))
        if is_guided(body)
        else streamed(*(event for word in words for event in (chunk(word), None)), DONE)
    )
    width, height = SIZES[size]
    with opened(fake.url, tmp_path, width=width, height=height) as page:
        page.evaluate(
            """(window.moved = [], new PerformanceObserver((list) => moved.push(...list.getEntries()))
                .observe({ type: "layout-shift", buffered: false }))"""
        )
        say(page, "Why?")
        page.wait_for("turns[0]?.guided.tokens.length > 0")
        page.evaluate("new Promise((done) => setTimeout(done, 700))")  # shifts up to 500 ms after a key are the user's
        page.evaluate("moved.length = 0")
        assert reply(page, "guided").strip().startswith("word0")
        assert len(reply(page, "guided")) < 30, "it comes piece by piece"
        for _ in range(100):
            fake.go_on(2)
            page.evaluate("new Promise(requestAnimationFrame)")
        wait_for_replies(page)
        assert reply(page, "guided").strip().endswith("word39")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert (
            page.evaluate("moved.flatMap((entry) => entry.sources.map(({node}) => node.outerHTML ?? node.data))") == []
        )
        page.evaluate("document.querySelector('.turn').prepend(element('p', 'a line'))")
        page.wait_for("moved.length > 0")


def test_stop_ends_one_reply_and_escape_all(fake: FakeServer, tmp_path: Path) -> None:
    fake.reply = lambda body: streamed(chunk("Well,"), None, chunk(" yes."), DONE)
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        page.wait_for("turns[0]?.base.text && turns[0].guided.text")
        assert page.evaluate("find('send').disabled")
        page.click("[data-side=guided] button")
        page.wait_for("running().length === 1")
        fake.go_on(2)
        wait_for_replies(page)
        assert [reply(page, "base"), reply(page, "guided")] == ["Well, yes.", "Well,"]
        assert not page.evaluate("find('again').disabled"), "what was stopped may be answered again"
        say(page, "And?")
        page.wait_for("turns[1]?.base.text && turns[1].guided.text")
        page.press("Escape", 27)
        wait_for_replies(page)
        assert told(fake.bodies[-1])[-3:] == ["Why?", told(fake.bodies[-1])[-2], "And?"]
        assert {told(body)[1] for body in fake.bodies[2:]} == {"Well, yes.", "Well,"}


def test_a_screen_reader_hears_a_reply_when_it_has_ended(fake: FakeServer, tmp_path: Path) -> None:
    fake.reply = lambda body: streamed(chunk("Well,"), None, chunk(" yes."), DONE)
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        page.wait_for("turns[0]?.base.text && turns[0].guided.text")
        assert page.evaluate("document.querySelector('[data-side=base]').ariaBusy") == "true"
        assert page.evaluate("document.querySelectorAll('#chat [aria-live]').length") == 0
        assert page.evaluate("find('said').textContent") == ""
        fake.go_on(2)
        wait_for_replies(page)
        assert page.evaluate("find('said').textContent").strip().endswith("reply: Well, yes.")
        assert page.evaluate("document.querySelector('[data-side=base]').ariaBusy") == "false"
        names = page.call("Accessibility.getFullAXTree")["nodes"]
        controls = {"button", "textbox", "slider", "spinbutton", "combobox", "checkbox"}
        named = [node.get("name", {}).get("value") for node in names if node.get("role", {}).get("value") in controls]
        assert len(named) > 8
        assert all(named), named


def test_times_are_the_servers_in_the_end(fake: FakeServer, tmp_path: Path) -> None:
    timing = {"pad": {"timing": {"step_s": 0.025, "first_token_s": 0.314}}}
    fake.reply = lambda body: streamed(chunk("a"), chunk("b"), {**chunk(finish="length"), **timing}, DONE)
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        wait_for_replies(page)
        for side in ("base", "guided"):
            assert text(page, f"[data-side={side}] .speed") == "\u200740.0 tokens/s, first after 0.31 s"
            assert reply(page, side) == "ab [cut at max tokens]"


def test_events_in_any_pieces(fake: FakeServer, tmp_path: Path) -> None:
    """Comments, carriage returns, and characters that are cut in the middle."""
    whole_stream = f": wait\r\n\r\ndata: {json.dumps(chunk('naïve 東京'), ensure_ascii=False)}\r\n\r\n:\n\n" + DONE
    fake.reply = lambda body: Answer(tuple(bytes([byte]) for byte in whole_stream.encode()))
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        wait_for_replies(page)
        assert reply(page, "base") == reply(page, "guided") == "naïve 東京"


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_colours_are_readable_and_nothing_is_wider_than_the_window(
    fake: FakeServer, tmp_path: Path, size: str, dark: bool
) -> None:
    fake.models = whole({"data": [model(), model("m" * 80), model("tiny:" + "p" * 80, person={})]})
    fake.reply = lambda body: (
        guided("word " * 9, " glad", "\n", "W" * 200, "") if is_guided(body) else refusal("n" * 99, 400)
    )
    width, height = SIZES[size]
    with opened(fake.url, tmp_path, width=width, height=height, dark=dark) as page:
        page.wait_for("models.length > 0")
        page.click("#settings summary")
        assert contrasts(page)[0][0] >= LEAST, contrasts(page)[0]
        say(page, "Q" * 200)
        wait_for_replies(page)
        page.point_at(".t")
        page.wait_for("!panel.hidden")
        assert contrasts(page)[0][0] >= LEAST, contrasts(page)[0]
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
            width,
            height,
        ]
        boxes = (
            "[...document.querySelectorAll('body *:not(h1, td, .unseen, select)')].filter((each) => each.clientWidth)"
        )
        wider = f"{boxes}.filter((each) => each.scrollWidth > each.clientWidth + 1).map((each) => each.outerHTML)"
        assert page.evaluate(wider) == []
        backgrounds = page.evaluate(
            "[...document.querySelectorAll('.t')].slice(0, 3).map((each) => getComputedStyle(each).backgroundColor)"
        )
        assert len(set(backgrounds)) == 3
        lines = page.evaluate(
            "[...document.querySelectorAll('.t')].map((each) => getComputedStyle(each).textDecorationLine)"
        )
        assert lines == ["underline", "none", "underline", "none", "underline"], "changed tokens, whatever their colour"
        page.evaluate(
            "document.documentElement.style.setProperty('--soft', getComputedStyle(document.body).backgroundColor)"
        )
        assert contrasts(page)[0][0] < LEAST, "the control"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_toggle_of_light_and_dark(fake: FakeServer, tmp_path: Path, dark: bool) -> None:
    paper = {False: "rgb(251, 250, 248)", True: "rgb(20, 22, 26)"}  # as on the page of pad generate --explain
    with opened(fake.url, tmp_path, dark=dark) as page:
        for is_dark in (dark, not dark):
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper[is_dark]
            assert page.evaluate("find('theme').ariaPressed") == str(is_dark).lower()
            page.click("#theme")
        page.click("#theme")
        page.call("Page.reload")
        page.wait_for("document.readyState === 'complete' && models?.length > 0")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper[not dark], "it is kept"


def test_keys_go_through_the_tokens(fake: FakeServer, tmp_path: Path) -> None:
    fake.reply = either
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        wait_for_replies(page)
        page.evaluate("document.querySelector('[data-side=guided] .t').focus()")
        for key, code, word in (
            ("ArrowLeft", 37, "So"),
            ("ArrowRight", 39, " glad"),
            ("End", 35, " asked!"),
            ("ArrowRight", 39, " asked!"),
            ("ArrowUp", 38, " you"),
            ("Home", 36, "So"),
        ):
            page.press(key, code)
            assert text(page, "#panel h3") == json.dumps(word)
        page.press("Escape", 27)
        assert page.evaluate("panel.hidden")
        assert page.evaluate("[...document.querySelectorAll('.t')].filter((each) => each.tabIndex === 0).length") == 1


def test_another_answer_takes_the_candidates_away(fake: FakeServer, tmp_path: Path) -> None:
    """With the token that they were of."""
    fake.reply = either
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        wait_for_replies(page)
        page.evaluate("document.querySelector('.t').focus()")
        assert not page.evaluate("panel.hidden")
        page.evaluate("answer(turns[0], 'guided')")
        wait_for_replies(page)
        assert page.evaluate("panel.hidden")
        page.evaluate("dispatchEvent(new Event('resize'))")
        assert page.faults == []


def test_texts_stay_texts(fake: FakeServer, tmp_path: Path) -> None:
    """Names, replies, candidates and errors that look like HTML are shown, and never run."""
    fake.models = whole(
        {"data": [model(HOSTILE, features=[HOSTILE], base=HOSTILE), model(f"{HOSTILE}:{HOSTILE}", person={})]}
    )
    fake.reply = lambda body: guided(HOSTILE) if is_guided(body) else refusal(HOSTILE, 400)
    with opened(fake.url, tmp_path) as page:
        say(page, HOSTILE)
        wait_for_replies(page)
        page.point_at(".t")
        assert text(page, "#panel h3") == json.dumps(HOSTILE)
        assert (
            text(page, ".slider label")
            == text(page, ".question")
            == reply(page, "guided")
            == reply(page, "base")
            == HOSTILE
        )
        assert page.evaluate("typeof hit") == "undefined"
        assert page.evaluate("document.querySelectorAll('img, b').length") == 0
        assert all(address.startswith(fake.url) for address in page.requests)
        assert page.faults == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x.png'}))"
        )
        page.evaluate("new Promise((done) => setTimeout(done, 200))")
        assert any("Content Security Policy" in fault for fault in page.faults), "the control"


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (refusal("the queue is full", 429, Retry_After="3"), "the queue is full"),
        (Answer(("<h1>Bad gateway</h1>",), 502), "The server answered 502 Bad Gateway"),
        (streamed(chunk("Well,"), {"error": {"message": "the device is lost"}}), "Well,\nthe device is lost"),
        (streamed(chunk("Well,")), "Well,\nThe reply broke off: the server has closed the connection."),
        (streamed(), "The reply broke off: the server has closed the connection."),
    ],
    ids=["refused", "not by this server", "an error after it began", "cut after it began", "cut"],
)
def test_a_failure_is_told_in_words(fake: FakeServer, tmp_path: Path, answer: Answer, shown: str) -> None:
    fake.reply = lambda body: answer
    with opened(fake.url, tmp_path) as page:
        say(page, "Why?")
        wait_for_replies(page)
        assert reply(page, "base") == reply(page, "guided") == shown
        assert text(page, "[data-side=base] .error") == shown.rsplit("\n", maxsplit=1)[-1]
        fake.reply = either
        page.click("#again")
        wait_for_replies(page)
        assert [reply(page, "base"), reply(page, "guided")] == ["It is.", "So glad you asked!"]
        say(page, "And?")
        page.wait_for("turns.length === 2 && running().length === 0")
        assert {len(body["messages"]) for body in fake.bodies[-2:]} == {3}


def test_a_server_that_has_gone(tmp_path: Path) -> None:
    with serving() as fake:
        with_page = opened(fake.url, tmp_path)
        page = with_page.__enter__()
        page.wait_for("models.length > 0")
    say(page, "Why?")
    wait_for_replies(page)
    assert reply(page, "base") == "The server does not answer."
    with_page.__exit__(None, None, None)


def test_a_server_that_loads_is_asked_again(fake: FakeServer, tmp_path: Path) -> None:
    fake.models = refusal("the bundle is being loaded", 503, Retry_After="1")
    with opened(fake.url, tmp_path) as page:
        page.wait_for("!find('notice').hidden")
        assert text(page, "#notice") == "the bundle is being loaded"
        fake.models = whole({"data": [model()]})
        say(page, "Why?")
        wait_for_replies(page)
        assert page.evaluate("find('notice').hidden")


def test_a_key_is_asked_for_where_the_server_wants_one(fake: FakeServer, tmp_path: Path) -> None:
    """After a 401 only; a wrong key is told, and the right one is kept in this tab alone."""
    listed = fake.models
    fake.models = refusal("the API key is missing or wrong", 401)
    with opened(fake.url, tmp_path) as page:
        page.wait_for("!find('lock').hidden")
        assert page.evaluate("document.activeElement.id") == "key"
        page.write("wrong")
        page.press("Enter", 13)
        page.wait_for("!find('notice').hidden")
        assert text(page, "#notice") == "the API key is missing or wrong"
        fake.models = listed
        page.evaluate("find('key').value = ''")
        page.write("secret")
        page.press("Enter", 13)
        page.wait_for("models.length > 0")
        assert page.evaluate("find('lock').hidden && find('notice').hidden")
        say(page, "Why?")
        wait_for_replies(page)
        assert [key for path, key, _ in fake.seen if path.startswith("/v1")] == [
            None,
            "Bearer wrong",
            *["Bearer secret"] * 3,
        ]
        assert page.evaluate("[JSON.stringify(localStorage), location.href, document.cookie]") == ["{}", fake.url, ""]
    with opened(fake.url, tmp_path) as page:
        page.wait_for("models.length > 0")
        assert page.evaluate("find('lock').hidden"), "nobody asked"


def test_the_policy_names_what_is_in_the_page() -> None:
    """No address but the icon's data, no handler in an attribute and no style in one: the policy would refuse them."""
    from pad_rt.serve.page import read_page

    page, headers = read_page()
    assert b"http" not in re.sub(rb"xmlns='http://www.w3.org/2000/svg'", b"", page)
    assert not re.search(rb"<[^>]*\s(on\w+|style)=", page)
    assert "unsafe" not in headers["Content-Security-Policy"]

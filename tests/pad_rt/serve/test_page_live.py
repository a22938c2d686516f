"""The page in a real browser, before the real server and a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pad_rt import GenerationConfig, Preference
from pad_rt.explain.choice import weigh
from pad_rt.serve.page import read_page
from tests.support import tiny_bundles
from tests.support.browser import CHROMIUM, Page, opened
from tests.support.guided_models import Models
from tests.support.live_server import LiveServer, serve, wait_until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

QUESTION = "How do I boil an egg?"
CONFIG = GenerationConfig(max_new_tokens=24, top_k=6)


@contextmanager
def page_of(server: LiveServer, profile: Path, **window: Any) -> Iterator[Page]:
    """The page, with few tokens and candidates, no words and all sliders at 0."""
    with opened(server.url.removesuffix("v1"), profile, **window) as page:
        page.wait_for("models.length > 0")
        page.evaluate("prefer({top_k: 6}), (find('max_tokens').value = 24), 0")
        yield page


def set_slider(page: Page, feature: str, *keys: tuple[str, int]) -> None:
    page.evaluate(f"document.querySelector('[data-feature={feature}]').focus()")
    for key, code in keys:
        page.press(key, code)


def say(page: Page, question: str) -> None:
    page.evaluate("message.focus()")
    page.write(question)
    page.press("Enter", 13)


def wait_for_replies(page: Page) -> None:
    page.wait_for("turns.length > 0 && running().length === 0")


def shown(page: Page, side: str) -> str:
    """The text as it stands on the page, without the signs of line feeds and of what has no text."""
    found: str = page.evaluate(f"turns.at(-1).{side}.body.textContent")
    return found.removesuffix(" [cut at max tokens]")


def test_both_replies_are_the_generators(server: LiveServer, tmp_path: Path) -> None:
    """Streamed, with nothing loaded from elsewhere; and moving a slider changes the guided reply, and back again."""
    preferences = {weight: Preference(weights={"kind": weight}) for weight in (1.0, -1.0)}
    texts = {
        weight: server.generator.generate(QUESTION, preference=wish, config=CONFIG).text
        for weight, wish in preferences.items()
    }
    base = server.generator.generate(QUESTION, config=CONFIG).text
    assert len({base, *texts.values()}) == 3, "no two are alike, or the test shows nothing"
    with page_of(server, tmp_path) as page:
        set_slider(page, "kind", ("End", 35))
        say(page, QUESTION)
        wait_for_replies(page)
        assert [shown(page, "base"), shown(page, "guided")] == [base, texts[1.0]]
        for key, code, weight in (("Home", 36, -1.0), ("End", 35, 1.0)):
            set_slider(page, "kind", (key, code), ("Enter", 13))
            wait_for_replies(page)
            assert [shown(page, "base"), shown(page, "guided")] == [base, texts[weight]]
        origin = server.url.removesuffix("/v1")
        chat = f"{origin}/v1/chat/completions"
        assert page.requests == [f"{origin}/", f"{origin}/v1/models", *[chat] * 4]
        assert page.faults == []


def test_pointing_at_a_token_shows_what_was_weighed(server: LiveServer, tmp_path: Path) -> None:
    wish = Preference(weights={"kind": 0.2, "odd": -0.1})
    result = server.generator.generate(QUESTION, preference=wish, config=CONFIG, trace=True)
    with page_of(server, tmp_path) as page:
        set_slider(page, "kind", ("ArrowRight", 39), ("ArrowRight", 39))
        set_slider(page, "odd", ("ArrowLeft", 37))
        say(page, QUESTION)
        wait_for_replies(page)
        classes = page.evaluate("turns[0].guided.tokens.map((token) => token.className)")
        choices = [weigh(step, id) for step, id in zip(result.trace, result.token_ids, strict=False)]
        assert ["changed" in each for each in classes[: len(choices)]] == [choice.changed for choice in choices]
        assert {choice.changed for choice in choices} == {True, False}, "or the test shows little"
        place = next(place for place, choice in enumerate(choices) if choice.changed and choice.gain > 0.1)
        assert page.evaluate(
            f"Number(turns[0].guided.tokens[{place}].style.getPropertyValue('--colour'))"
        ) == pytest.approx(min(1, choices[place].gain / 2), abs=1e-3)
        page.evaluate(f"turns[0].guided.tokens[{place}].id = 'pointed'")
        page.point_at("#pointed")
        page.wait_for("!panel.hidden")
        name = server.generator.token_text
        rows = page.evaluate(
            "[...panel.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((c) => c.textContent))"
        )
        assert [row[0] for row in rows] == [
            json.dumps(name(each.id), ensure_ascii=False) for each in choices[place].candidates
        ]
        for row, each in zip(rows, choices[place].candidates, strict=True):
            for cell, value, width in ((row[1], each.base_chance, 0.006), (row[2], each.guided_chance, 0.006)):
                assert float(cell.rstrip("\u202f%")) / 100 == pytest.approx(value, abs=width)
            assert float(row[3].replace("\u2212", "-")) == pytest.approx(each.reward, abs=0.006)
        assert page.evaluate("panel.querySelectorAll('tr.chosen').length") == 1
        favourite = json.dumps(name(choices[place].favourite.id), ensure_ascii=False)
        assert f"The base alone would have chosen {favourite}." in page.evaluate("panel.textContent")
        page.point_at("h1")
        page.wait_for("panel.hidden")


def test_a_person_is_a_choice_in_a_menu(server: LiveServer, tmp_path: Path) -> None:
    anna = Preference(weights={"kind": 1.5, "brief": -0.75})
    config = GenerationConfig(max_new_tokens=24, top_k=10, beta=1.25)
    expected = server.generator.generate(QUESTION, preference=anna, config=config).text
    with page_of(server, tmp_path) as page:
        page.evaluate("find('person').focus()")
        page.press("ArrowDown", 40)
        page.wait_for("find('person').value === 'tiny:anna'")
        say(page, QUESTION)
        wait_for_replies(page)
        assert shown(page, "guided") == expected
        assert page.evaluate("turns[0].guided.made.textContent") == "kind +1.5, brief \u22120.75, beta 1.25"


def test_words_guide_where_they_are_read(server: LiveServer, tmp_path: Path) -> None:
    expected = server.generator.generate(QUESTION, preference="be kind", config=CONFIG).text
    with page_of(server, tmp_path) as page:
        page.evaluate("find('words').focus()")
        page.write("be kind")
        say(page, QUESTION)
        wait_for_replies(page)
        assert shown(page, "guided") == expected


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_both_replies_and_taps_show_candidates(server: LiveServer, tmp_path: Path, dark: bool) -> None:
    with page_of(server, tmp_path, width=360, height=740, dark=dark) as page:
        set_slider(page, "kind", ("End", 35))
        for question in ("the cook", QUESTION):
            say(page, question)
            wait_for_replies(page)
        page.evaluate("document.activeElement.blur()")
        assert page.evaluate("[document.documentElement.scrollWidth, chat.scrollWidth - chat.clientWidth]") == [360, 0]
        base, guided = page.evaluate(
            """["base", "guided"].map((side) => turns[1][side].body.getBoundingClientRect())
                .map(({ left, top, bottom }) => ({ left, top, bottom }))"""
        )
        assert base["left"] == guided["left"]
        assert base["bottom"] < guided["top"], "one under the other"
        assert guided["bottom"] < page.evaluate("find('ask').getBoundingClientRect().top"), "both in sight"
        x, y = page.evaluate(
            """(() => {
                const box = turns[1].guided.tokens.at(-1).getClientRects()[0];
                return [box.x + box.width / 2, box.y + box.height / 2];
            })()"""
        )
        page.tap(x, y)
        page.wait_for("!panel.hidden")
        panel = page.evaluate(
            "(({left, right, top, bottom}) => [left, right, top, bottom])(panel.getBoundingClientRect())"
        )
        assert panel[0] >= 0
        assert panel[1] <= 360
        assert not panel[2] <= y <= panel[3], "the token stays in sight"


def test_an_error_is_told_as_the_server_told_it(server: LiveServer, tmp_path: Path) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a"}],
        "pad": {"weights": {"kind": 1}, "top_k": 9999},
    }
    message = server.post("/v1/chat/completions", body).json()["error"]["message"]
    with page_of(server, tmp_path) as page:
        page.evaluate("find('top_k').value = 9999")
        set_slider(page, "kind", ("End", 35))
        say(page, QUESTION)
        wait_for_replies(page)
        assert shown(page, "base") == shown(page, "guided") == message


def test_stop_frees_the_slots(server: LiveServer, tmp_path: Path) -> None:
    """At the first token: the page calls what its buttons call."""
    length = server.generator.generate(QUESTION, config=GenerationConfig(max_new_tokens=400)).usage.completion_tokens
    with page_of(server, tmp_path) as page:
        page.evaluate(
            """find("max_tokens").value = 400;
            const take = Reply.prototype.take;
            Reply.prototype.take = function (chunk) {
              take.call(this, chunk);
              if (this.text) this.stop.click();
            };"""
        )
        say(page, QUESTION)
        wait_for_replies(page)
        wait_until(server.is_idle)
        assert 0 < page.evaluate("turns[0].base.count") < length / 2


def test_a_server_with_a_key(models: Models, tmp_path: Path) -> None:
    with (
        serve(tiny_bundles.load(models.bundle("base")), api_keys=("secret",)) as server,
        opened(server.url.removesuffix("v1"), tmp_path) as page,
    ):
        page.wait_for("!find('lock').hidden")
        assert page.evaluate("document.querySelectorAll('.slider').length") == 0, "it tells nothing of the model"
        page.write("secret")
        page.press("Enter", 13)
        page.wait_for("models.length > 0")
        assert page.evaluate("find('lock').hidden")
        say(page, "a")
        wait_for_replies(page)
        assert page.evaluate("turns[0].base.text") != ""


def test_the_server_sends_the_pages_policy(server: LiveServer) -> None:
    page, headers = read_page()
    answer = server.get("/")
    assert answer.body == page
    assert {name.lower(): value for name, value in headers.items()}.items() <= answer.headers.items()

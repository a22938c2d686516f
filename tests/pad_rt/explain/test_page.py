"""The page without a browser: what it says, that it needs nothing else, and that no text becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pad_rt import EncodedPrompt, GenerationConfig, Generator
from pad_rt.explain.choice import weigh
from pad_runtime.errors import OptionError
from tests.support import tiny_bundles
from tests.support.error_checks import refused
from tests.support.explained import HOSTILE, Explained
from tests.support.html_page import Element, HtmlPage

CONFIG = GenerationConfig(max_new_tokens=12, beta=2.0, top_k=6)


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator.load(tiny_bundle, num_threads=1)


def tokens(page: HtmlPage) -> list[Element]:
    return page.find("span", css_class="t")


def data(page: HtmlPage) -> list[dict[str, Any]]:
    (script,) = page.find("script", id="data")
    read: list[dict[str, Any]] = json.loads(script.text)
    return read


def test_the_reply_is_on_the_page_token_by_token(generator: Generator) -> None:
    result = generator.generate("hi", preference="short", config=CONFIG, trace=True)
    page = HtmlPage.parse(generator.explain(result, "hi", preference="short", config=CONFIG))
    (reply,) = page.find(id="reply")
    assert reply.text == result.text
    assert len(tokens(page)) == len(data(page)) == len(result.trace) == 12
    choices = [weigh(step, id) for step, id in zip(result.trace, result.token_ids, strict=True)]
    assert 0 < sum(choice.changed for choice in choices) < 12, "choose another prompt"
    for token, choice, record in zip(tokens(page), choices, data(page), strict=True):
        assert token.has_class("changed") == choice.changed == record["changed"]
        assert token.has_class("more") == (choice.gain > 0)
        colour = float(token.attributes["style"].removeprefix("--colour: "))
        assert colour == pytest.approx(min(1.0, abs(choice.gain) / 2), abs=1e-3)
        assert record["gain"] == pytest.approx(choice.gain, abs=1e-4)
        assert [row[3:] for row in record["candidates"]] == [
            pytest.approx([candidate.base_logit, candidate.reward, candidate.score], abs=1e-3)
            for candidate in choice.candidates
        ]
        assert record["candidates"][record["favourite"]][4] == 0.0
    (said,) = page.find("p", css_class="said")
    assert said.text == "hi"
    assert "“short”" in page.find("ul", css_class="chips")[0].text


def test_nothing_is_loaded(explained: Explained) -> None:
    page = HtmlPage.parse(explained.page())
    assert {element.name for element in page.elements} <= {
        *("html", "head", "meta", "title", "style", "script", "body", "header", "main", "section", "aside", "noscript"),
        *("h1", "h2", "p", "div", "span", "ul", "li", "b", "details", "summary"),
    }
    attributes = {name for element in page.elements for name in element.attributes}
    assert not attributes & {"src", "href", "srcset", "action", "data", "poster", "background"}
    assert not any(name.startswith("on") for name in attributes)
    (style,) = page.find("style")
    assert not re.search(r"url\(|@import", style.text)
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy.attributes["content"]
    scripts = [script for script in page.find("script") if "id" not in script.attributes]
    assert len(scripts) == 1
    assert not re.search(r"fetch|XMLHttp|import\b|innerHTML|https?:", scripts[0].text)


def test_no_text_becomes_markup(explained: Explained) -> None:
    source = explained.page()
    page = HtmlPage.parse(source)
    assert [element.text for element in page.find("p", css_class="said")] == ["<i>Be</i> kind.", HOSTILE]
    assert f'0.5 \u00d7 “"{HOSTILE}"”' in page.find("ul", css_class="chips")[0].text
    (reply,) = page.find(id="reply")
    end = tokens(page)[-1]
    assert end.has_class("end")
    assert reply.text == explained.result.text + end.text
    assert "</script><b>\n\n🥚 &amp;\u2028é" in explained.result.text
    names = {row[0] for record in data(page) for row in record["candidates"]}
    assert {"</script>", "<b>", "<0xF0>", "\u2028"} <= names
    assert source.count("</script>") == 2
    assert "<!--" not in source


def test_tokens_to_be_seen(explained: Explained) -> None:
    """Line feeds and parts of characters have marks, which are no part of the text; one token can be reached by Tab."""
    page = HtmlPage.parse(explained.page())
    marks = [mark.attributes["data-mark"] for mark in page.find("span", css_class="mark")]
    assert marks == ["↵", "↵", "⋯", "⋯", "⋯"]
    assert [token.attributes["tabindex"] for token in tokens(page)] == ["0", *["-1"] * (len(tokens(page)) - 1)]
    assert [token.has_class("changed") for token in tokens(page)] == [
        place % 2 == 1 for place in range(len(tokens(page)))
    ]


@pytest.mark.parametrize(
    ("config", "words", "others"),
    [
        (GenerationConfig(top_k=4), "4 likeliest candidates.", "The best score wins."),
        (GenerationConfig(top_k=4, offer_end=True), "4 likeliest candidates and the end of the turn.", ""),
        (GenerationConfig(beta=0.25), "beta (0.25)", ""),
        (GenerationConfig(temperature=0.5, seed=9), "a sample of the scores, at temperature 0.5 with seed 9.", ""),
    ],
)
def test_what_it_was_made_with(explained: Explained, config: GenerationConfig, words: str, others: str) -> None:
    (how,) = HtmlPage.parse(explained.page(config=config)).find("details")
    text = " ".join(how.text.split())
    assert words in text
    assert others in text


def test_many_candidates_are_not_all_listed(generator: Generator) -> None:
    """The best twelve, and always the chosen one and the base's first choice."""
    config = GenerationConfig(max_new_tokens=12, beta=-6.0, top_k=20, temperature=3.0, seed=4)
    result = generator.generate("hi", preference="short", config=config, trace=True)
    records = data(HtmlPage.parse(generator.explain(result, "hi", preference="short", config=config)))
    assert {len(record["candidates"]) for record in records} == {12, 13}
    for record, step, id in zip(records, result.trace, result.token_ids, strict=True):
        assert len(record["candidates"]) + record["more"] == 20
        choice = weigh(step, id)
        assert record["candidates"][record["chosen"]][3] == pytest.approx(choice.chosen.base_logit, abs=1e-3)
        assert record["candidates"][record["favourite"]][3] == pytest.approx(choice.favourite.base_logit, abs=1e-3)


def test_prompts_as_ids(tiny_bundle: Path, generator: Generator) -> None:
    base, reward = (tiny_bundles.encode_turn(tiny_bundle, words) for words in ("hi", "[short] hi"))
    prompt = EncodedPrompt(base, reward)
    result = generator.generate(prompt, config=CONFIG, trace=True)
    page = HtmlPage.parse(generator.explain(result, prompt, config=CONFIG))
    assert page.find("p", css_class="said")[0].text == "<s><|user|>hi<|assistant|>"
    assert "as written in the PersRM's prompt" in page.find("ul", css_class="chips")[0].text


def test_messages_in_parts(explained: Explained) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "<two>"}]
    calls = {"role": "assistant", "content": None, "tool_calls": []}
    page = HtmlPage.parse(explained.page(prompt=[{"role": "user", "content": parts}, calls]))
    assert [element.text for element in page.find("p", css_class="said")] == ["one <two>", ""]


def test_a_reply_that_was_not_traced(generator: Generator) -> None:
    result = generator.generate("hi", preference="short", config=CONFIG)
    with refused(OptionError, given="a result without a trace", hint="trace=True"):
        generator.explain(result, "hi", preference="short", config=CONFIG)


def test_a_stream_with_a_trace(generator: Generator) -> None:
    stream = generator.stream("hi", preference="short", config=CONFIG, trace=True)
    text = "".join(stream)
    whole = generator.generate("hi", preference="short", config=CONFIG, trace=True)
    assert stream.result
    assert (text, len(stream.result.trace)) == (whole.text, len(whole.trace))
    assert generator.explain(stream.result, "hi", preference="short", config=CONFIG) == generator.explain(
        whole, "hi", preference="short", config=CONFIG
    )

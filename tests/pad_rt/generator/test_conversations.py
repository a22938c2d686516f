"""Conversations: every turn gets the reply that its messages get when all of them are read anew."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pad_rt import Conversation, GenerationConfig, GenerationResult, Generator, Preference
from pad_rt.engine.ticket import Ticket
from pad_runtime.decode.decoder import Decoder
from pad_runtime.errors import ConversationError, OptionError, OutOfMemoryError, PreferenceError, PromptError
from tests.support import tiny_bundles
from tests.support.error_checks import check_line, refused
from tests.support.guided_models import Models, config
from tests.support.pad_command import interrupted_reply

KIND, BRIEF = Preference(weights={"kind": 1.5}), Preference("egg", {"brief": 1.0, "kind": -0.5})
TURNS = ("How do I boil an egg?", "the cook", "東京 naïve", "a")

Reread = Callable[..., GenerationResult]


@pytest.fixture
def reread(models: Models) -> Reread:
    """Replies of a generator that has read nothing yet."""

    def reply(messages: list[dict[str, str]], **options: Any) -> GenerationResult:
        return tiny_bundles.load(models.bundle("base")).generate(messages, **options)

    return reply


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def check_last(chat: Conversation, result: GenerationResult | None, reread: Reread) -> None:
    """The reply is what its messages get, read anew; and not what the last message gets alone."""
    assert result is not None
    *before, said, reply = chat.messages
    expected = reread([*before, said], preference=chat.preference, config=chat.config)
    assert result.token_ids == expected.token_ids
    assert reply == {"role": "assistant", "content": expected.text}
    if before:
        alone = reread([said], preference=chat.preference, config=chat.config)
        assert result.token_ids != alone.token_ids


@pytest.mark.parametrize("preference", [None, KIND, BRIEF, "be kind"], ids=["none", "weights", "both", "words"])
def test_every_turn_is_as_if_all_were_read_anew(generator: Generator, reread: Reread, preference: Any) -> None:
    chat = generator.conversation(system="Be odd.", preference=preference, config=config(max_new_tokens=9))
    assert chat.messages == [{"role": "system", "content": "Be odd."}]
    before = None
    for turn in TURNS:
        result = chat.say(turn)
        check_last(chat, result, reread)
        if before:  # of its reply, as much as is the same tokens when its text is read
            most = before.prompt_tokens + before.completion_tokens
            assert before.prompt_tokens - 1 <= result.usage.cached_tokens < most
        before = result.usage
    assert [message["content"] for message in chat.messages[1::2]] == list(TURNS)
    assert (chat.num_turns, chat.forgotten) == (len(TURNS), 0)


def test_preference_and_options_change_between_turns(generator: Generator, reread: Reread) -> None:
    chat = generator.conversation(config=config(max_new_tokens=9))
    chat.say("the cook")
    for preference in (KIND, Preference(weights={"kind": -1.0, "odd": 2.0}), "be kind", BRIEF, None, [("a", 0.5)]):
        chat.preference = preference
        assert chat.preference == preference
        check_last(chat, chat.say("egg"), reread)
    chat.config = {"max_new_tokens": 5, "temperature": 1.5, "seed": 3}
    chat.preference = KIND
    check_last(chat, chat.say("and?"), reread)
    chat.config = None
    assert chat.config == GenerationConfig()


def test_another_preference_reads_no_message_again(models: Models) -> None:
    """Nor do a rewind, a fork, or going on without one."""
    chat = tiny_bundles.load(models.bundle("base")).conversation(preference=KIND, config=config(max_new_tokens=9))
    least = chat.say("How do I boil an egg?").usage.prompt_tokens - 1
    assert least > 15

    def cached(preference: Any) -> int:
        chat.preference = preference
        return chat.say("the cook").usage.cached_tokens

    assert cached(Preference(weights={"odd": 2.0})) >= least
    chat.rewind()
    assert cached(None) >= least
    fork = chat.fork()
    assert fork.say("egg").usage.cached_tokens >= least
    assert cached("be kind") >= least, "of the base's prompt"
    assert cached("egg") >= least


def test_turns_are_taken_back(generator: Generator, reread: Reread) -> None:
    chat = generator.conversation(preference=KIND, config=config(max_new_tokens=9))
    before = []
    for turn in TURNS:
        before.append(chat.messages)
        chat.say(turn)
    chat.rewind()
    assert chat.messages == before[3]
    chat.rewind(2)
    assert chat.messages == before[1]
    check_last(chat, chat.say("another"), reread)
    chat.rewind(0)
    assert chat.num_turns == 2
    for wrong in (3, -1, True, 1.5, "1", None):
        with refused(OptionError, given=f"rewind({wrong!r})", expected="0 to 2, the turns of this conversation"):
            chat.rewind(wrong)  # type: ignore[arg-type]
    assert chat.num_turns == 2


def test_a_fork_goes_on_by_itself(generator: Generator, reread: Reread) -> None:
    chat = generator.conversation(system="Be odd.", preference=KIND, config=config(max_new_tokens=9))
    chat.say("the cook")
    forks = [chat.fork(), chat.fork(preference=BRIEF), chat.fork(preference=None)]
    assert [fork.preference for fork in forks] == [KIND, BRIEF, None]
    for turn in ("a", "egg"):
        for each in (*forks, chat):
            check_last(each, each.say(turn), reread)
    replies = [each.messages[-1]["content"] for each in (chat, *forks)]
    assert replies[0] == replies[1]
    assert len(set(replies)) == 3
    forks[0].rewind(3)
    assert chat.num_turns == 3


def test_conversations_side_by_side(generator: Generator, reread: Reread) -> None:
    """People in threads of their own, each with a preference: each is replied to as if alone."""
    people = (KIND, BRIEF, "be kind", None, Preference(weights={"odd": 2.0}))
    chats = [generator.conversation(preference=person, config=config(max_new_tokens=9)) for person in people]

    def talk(chat: Conversation) -> list[GenerationResult]:
        return [chat.say(turn) for turn in TURNS[:3]]

    with ThreadPoolExecutor(len(chats)) as pool:
        replies = list(pool.map(talk, chats))
    for chat, results in zip(chats, replies, strict=True):
        for result in reversed(results):
            check_last(chat, result, reread)
            chat.rewind()


# -- replies that end early ------------------------------------------------------------------------------------------


def test_pieces_of_a_turn_are_its_reply(generator: Generator, reread: Reread) -> None:
    chat = generator.conversation(preference=KIND, config=config())
    chat.say("the cook")
    stream = chat.stream("egg")
    first = next(stream)
    assert chat.num_turns == 1, "the turn is not over"
    text = first + "".join(stream)
    assert chat.messages[-2:] == [user("egg"), {"role": "assistant", "content": text}]
    check_last(chat, stream.result, reread)


def close(chat: Conversation, stream: list[Any]) -> None:
    stream[0].close()
    assert (list(stream[0]), stream[0].result) == ([], None)


def drop(chat: Conversation, stream: list[Any]) -> None:
    stream.clear()


def go_on(chat: Conversation, stream: list[Any]) -> None:
    chat.rewind(0)
    assert list(stream[0]) == []


@pytest.mark.parametrize("end", [close, drop, go_on])
@pytest.mark.parametrize("pieces", [0, 3])
def test_a_reply_that_is_ended_is_the_text_so_far(
    generator: Generator, reread: Reread, end: Callable[[Conversation, list[Any]], None], pieces: int
) -> None:
    """Without any text, the turn is left out."""
    chat = generator.conversation(preference=KIND, config=config())
    streams = [chat.stream("the cook")]
    text = "".join(next(streams[0]) for _ in range(pieces))
    end(chat, streams)
    assert chat.messages == ([user("the cook"), {"role": "assistant", "content": text}] if pieces else [])
    result = chat.say("egg")
    assert chat.num_turns == 1 + bool(pieces)
    if pieces:
        check_last(chat, result, reread)


@pytest.mark.parametrize("pieces", [(), ("some ", "words")])
def test_ctrl_c_in_a_reply(generator: Generator, monkeypatch: pytest.MonkeyPatch, pieces: tuple[str, ...]) -> None:
    chat = generator.conversation()
    with monkeypatch.context() as patch:
        patch.setattr(Ticket, "__next__", interrupted_reply(pieces=pieces))
        with pytest.raises(KeyboardInterrupt):
            chat.say("hi")
    expected = [user("hi"), {"role": "assistant", "content": "some words"}] if pieces else []
    assert chat.messages == expected


@pytest.mark.parametrize("error", [OutOfMemoryError("no memory", hint="this is a test"), RuntimeError("a device's")])
def test_a_reply_that_fails_is_none(generator: Generator, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    chat, real, left = generator.conversation(config=config()), Decoder.step, [8]

    def step(self: Decoder, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", step)
        stream = chat.stream("hi")
        text = next(stream)
        with pytest.raises(type(error)):
            list(stream)
    assert chat.messages == []
    assert chat.say("hi").text.startswith(text)


# -- a full context --------------------------------------------------------------------------------------------------


def test_the_oldest_turns_leave_when_the_context_is_full(generator: Generator, reread: Reread) -> None:
    limit = generator.manifest.max_length
    chat = generator.conversation(system="Be odd.", preference=KIND, config=config(max_new_tokens=12))
    said, forgotten = [], 0
    while chat.forgotten < 3:
        said.append(f"{len(said)} {'egg ' * 20}")
        result = chat.say(said[-1])
        assert chat.messages[0] == {"role": "system", "content": "Be odd."}
        assert [message["content"] for message in chat.messages[1::2]] == said[chat.forgotten :]
        assert result.usage.prompt_tokens + result.usage.completion_tokens <= limit
        assert result.usage.completion_tokens == 12
        if chat.forgotten > forgotten:
            forgotten = chat.forgotten
            check_last(chat, result, reread)
    with refused(PromptError, given="a prompt of "):
        chat.say("x" * limit * 2)
    assert chat.forgotten == forgotten
    assert chat.fork().forgotten == forgotten


# -- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_set_is_refused_at_once(generator: Generator) -> None:
    """And what was set before stays."""
    chat = generator.conversation(preference=KIND, config=config())
    for wrong, kind in ((Preference(weights={"sad": 1.0}), PreferenceError), ([], PreferenceError)):
        with pytest.raises(kind):
            chat.preference = wrong
        with pytest.raises(kind):
            chat.fork(preference=wrong)
    with refused(PromptError, given="a preference that leaves no room for a chat", hint="shorten it"):
        chat.preference = "x" * 600
    for config_ in ({"top_q": 1}, 5):
        with pytest.raises(OptionError):
            chat.config = config_  # type: ignore[assignment]
    assert (chat.preference, chat.config) == (KIND, config())
    with refused(PromptError, given="a system message that leaves no room for a chat"):
        generator.conversation(system="x" * 600)
    for text in ("", 5, None):
        with pytest.raises(PromptError) as caught:
            chat.say(text)  # type: ignore[arg-type]
        check_line(caught.value)
    assert chat.messages == []


def test_a_closed_conversation(generator: Generator, tmp_path: Any) -> None:
    with generator.conversation(config=config()) as chat:
        stream = chat.stream("hi")
        text = next(stream)
    assert chat.messages == [user("hi"), {"role": "assistant", "content": text}]
    for use in (
        lambda: chat.say("x"),
        lambda: chat.stream("x"),
        chat.rewind,
        chat.fork,
        lambda: chat.save(tmp_path / "chat"),
    ):
        with refused(ConversationError, given="a conversation that was closed", hint="begin another"):
            use()
    chat.close()
    assert list(tmp_path.iterdir()) == []

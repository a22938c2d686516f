"""`pad chat`: turns, guidance that changes between them, lines that fail, Ctrl-C, and a real terminal."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pad_rt import GenerationConfig, Generator, Preference
from pad_rt.cli.main import main
from pad_rt.engine.ticket import Ticket
from pad_rt.history import History
from tests.support.error_checks import edit_manifest, error_line
from tests.support.pad_command import PAD, SHORT, interrupted_reply, pipe_in

CUT = "cut at 6 tokens (--max-new-tokens)\n"


def chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundle: Path, lines: str, *options: str
) -> tuple[str, str]:
    """Replies and notes of a chat with these lines piped in, but for the note that each reply was cut."""
    pipe_in(monkeypatch, lines)
    assert main(["chat", str(bundle), "--max-new-tokens", "6", *options]) == 0
    out, err = capsys.readouterr()
    return out, err.replace(CUT, "")


def converse(generator: Generator, *turns: str, preference: Any = None, **config: Any) -> str:
    """What a chat replies to these turns, each on a line."""
    messages: list[dict[str, str]] = []
    replies = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        options = GenerationConfig(max_new_tokens=6, **config)
        replies.append(generator.generate(messages, preference=preference, config=options).text)
        messages.append({"role": "assistant", "content": replies[-1]})
    return "".join(f"{reply}\n" for reply in replies)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def exchange(said: str, reply: str) -> list[dict[str, str]]:
    return [user(said), {"role": "assistant", "content": reply}]


def test_a_chat_remembers(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = chat(monkeypatch, capsys, tiny_bundle, "hi\n\nand now?\n", "--preference", "short")
    assert out == converse(generator, "hi", "and now?", preference="short")
    assert out != converse(generator, "hi", preference="short") + converse(generator, "and now?", preference="short")
    assert err == ""


def test_a_reply_that_was_cut_is_marked(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe_in(monkeypatch, "hi\n")
    assert main(["chat", str(tiny_bundle), "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().err == CUT
    last = generator.generate("hi", config=SHORT).token_ids[-1]
    pipe_in(monkeypatch, "hi\n")
    assert main(["chat", str(tiny_bundle), "--max-new-tokens", "6", "--stop-token-id", str(last)]) == 0
    assert capsys.readouterr().err == ""


# -- a full history: max_length is 256, of which a reply of 6 tokens needs 6 -----------------------------------------


def count(generator: Generator, *turns: str) -> int:
    """Tokens of a prompt of these messages, user and assistant in turn."""
    roles = itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return 256 - generator.room(messages)


def test_the_oldest_turns_go_when_the_history_is_full(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two long turns, then a short message, and another: each is replied to with the turns that still fit."""
    first, second = "x" * 100, "y" * 120
    out, err = chat(monkeypatch, capsys, tiny_bundle, f"{first}\n{second}\nok?\nand?\n")
    replies = out.split("\n")
    assert err == "the oldest turn no longer fits and is forgotten\n"
    assert count(generator, first, replies[0], second) <= 250
    assert count(generator, first, replies[0], second, replies[1], "ok?") > 250
    assert out.startswith(converse(generator, first, second))
    kept = [*exchange(second, replies[1]), user("ok?")]
    assert generator.generate(kept, config=SHORT).text == replies[2]
    kept = [*exchange(second, replies[1]), *exchange("ok?", replies[2]), user("and?")]
    assert generator.generate(kept, config=SHORT).text == replies[3]


def test_the_system_message_stays(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [letter * 60 for letter in "abcdef"]
    out, err = chat(monkeypatch, capsys, tiny_bundle, "\n".join([*turns, "/reset", "hi", ""]), "--system", "Be odd.")
    assert err.count("forgotten") == 2, "more go at once than must"
    assert err.endswith("the chat begins anew\n")
    system = {"role": "system", "content": "Be odd."}
    replies = out.split("\n")
    assert replies[6] == generator.generate([system, user("hi")], config=SHORT).text
    last = [system, *exchange(turns[4], replies[4]), user(turns[5])]
    assert generator.generate(last, config=SHORT).text == replies[5]


def test_several_turns_go_at_once(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "y" * 200
    out, err = chat(monkeypatch, capsys, tiny_bundle, "\n".join(["a" * 40, "b" * 40, "c" * 40, long, ""]))
    assert err == "the 3 oldest turns no longer fit and are forgotten\n"
    assert out.endswith("\n" + converse(generator, long))


def test_a_message_that_alone_does_not_fit_is_refused_and_nothing_is_forgotten(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = chat(monkeypatch, capsys, tiny_bundle, "hi\n" + "x" * 300 + "\nand now?\n")
    tokens = count(generator, "x" * 300)
    assert f"a prompt of {tokens} tokens; expected at most 255: the bundle's max_length" in error_line(err, "pad")
    assert out == converse(generator, "hi", "and now?")


def test_room_for_a_reply_is_a_quarter_of_the_bundle_at_most() -> None:
    """A reserve that nothing can give costs all turns, and no more than that; what is spare costs none by itself."""
    history = History("s", tuple((str(index), "r") for index in range(5)))
    for full, reserve, spare, kept in (
        (11, 1, 0, 4),
        (13, 1, 0, 5),
        (11, 3, 0, 3),
        (11, 100, 0, 0),
        (1, 1, 0, 0),
        (13, 1, 9, 5),
        (11, 1, 4, 2),
        (11, 1, 100, 4),
    ):
        room = lambda messages, full=full: full - len(messages)  # noqa: E731
        assert len(history.shortened("now", room, reserve=reserve, spare=spare).turns) == kept
    assert history.shortened("now", lambda messages: 13 - len(messages), reserve=3).turns == history.turns[1:]


def test_a_system_message_that_leaves_no_room(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tiny_bundle), "--system", "x" * 300]) == 2
    line = error_line(capsys.readouterr().err, "pad")
    assert "a system message that leaves no room for a chat; expected fewer than 256 tokens" in line


def set_template(bundle: Path, source: str) -> None:
    (bundle / "chat_template.jinja").write_text(source, encoding="utf-8")
    edit_manifest(bundle, rehash=True)


def test_a_system_message_that_the_template_refuses(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first message is typed."""
    set_template(
        bundle, "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}{{ 1 }}"
    )
    assert main(["chat", str(bundle), "--system", "Be odd."]) == 2
    line = error_line(capsys.readouterr().err, "pad")
    assert "the chat template refuses these messages: No system role; change the messages accordingly" in line
    set_template(bundle, "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    assert main(["chat", str(bundle), "--system", "Be odd."]) == 2
    assert "message 0 of the system; expected messages that the base's" in error_line(capsys.readouterr().err, "pad")


def test_turns_go_whole_where_the_template_wants_them_to_alternate(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_template(
        bundle,
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
        "{% endif %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>",
    )
    out, err = chat(monkeypatch, capsys, bundle, "\n".join([*(letter * 60 for letter in "abcdef"), ""]))
    assert len(out.split("\n")) == 7
    one, two = "the oldest turn no longer fits and is forgotten", "the 2 oldest turns no longer fit and are forgotten"
    assert set(err.splitlines()) == {one, two}


def test_what_the_template_leaves_out_of_replies_is_said_once(bundle: Path) -> None:
    """In a process of its own: here warnings are errors."""
    set_template(
        bundle,
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content[2:] if m.role == 'assistant' else m.content }}"
        "{% endfor %}<|assistant|>",
    )
    process = subprocess.run(
        [*PAD, "chat", str(bundle), "--max-new-tokens", "6", "--threads", "1"],
        input=b"hi\nand now?\nand then?\n",
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0
    lines = [line for line in process.stderr.decode().splitlines(keepends=True) if line != CUT]
    assert lines == ["pad: the base's chat template leaves out part of a message of the assistant, such as reasoning\n"]


def test_a_message_that_begins_with_a_slash(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = chat(monkeypatch, capsys, tiny_bundle, "/etc/passwd - what is it?\n//etc/passwd - what is it?\n///\n")
    assert out == converse(generator, "/etc/passwd - what is it?", "//")
    line = error_line(err, "pad")
    assert "unknown command '/etc/passwd'; expected one of /preference, " in line
    assert line.endswith("write // to send a message that begins with /")


def test_guidance_changes_between_turns(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "hi\n/preference short words\n/beta 3\n/weight cheerful=0.5\n/reset\nhi\n/preference\n/weight\n/reset\nhi\n"
    out, err = chat(monkeypatch, capsys, tiny_bundle, lines)
    guided = converse(generator, "hi", preference=Preference("short words", {"cheerful": 0.5}), beta=3.0)
    alone = converse(generator, "hi")
    assert out == alone + guided + alone
    assert err.splitlines() == [
        'preference "short words", beta 1',
        'preference "short words", beta 3',
        'preference "short words", cheerful 0.5, beta 3',
        "the chat begins anew",
        "cheerful 0.5, beta 3",
        "no preference, beta 3",
        "the chat begins anew",
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "/bake a cake",
            "unknown command '/bake'; expected one of /preference, /weight, /beta, /undo, /reset, /fork, ",
        ),
        ("/", "unknown command '/'"),
        ("/beta", "/beta; expected a number"),
        ("/beta much", "/beta much; expected a number"),
        ("/beta nan", "beta=nan; expected a finite number"),
        ("/weight cheerful", "--weight 'cheerful'; expected NAME=W"),
        ("/weight sad=1", "unknown feature 'sad'; expected one of cheerful"),
        ("/undo 2", "/undo 2; expected a number from 1 to 1"),
        ("/undo two", "/undo two; expected a number from 1 to 1"),
        ("/chat 0", "/chat 0; expected a number from 1 to 1"),
        ("/save", "/save without a file; expected /save FILE"),
        ("/save /none/chat", "/none/chat cannot be written: No such file or directory"),
        ("/load", "/load without a file; expected /load FILE"),
        ("/load /none/chat", "no saved conversation at /none/chat"),
        ("/preference " + "x" * 300, "a preference that leaves no room for a chat"),
        ("x" * 300, "a prompt of "),
    ],
)
def test_a_line_that_fails_is_reported_and_the_chat_goes_on(
    tiny_bundle: Path,
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    words: str,
) -> None:
    out, err = chat(monkeypatch, capsys, tiny_bundle, f"hi\n{line}\nand now?\n")
    assert out == converse(generator, "hi", "and now?")
    assert words in error_line(err, "pad")
    assert err.count("\n") == 1


def test_help_and_quit(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = chat(monkeypatch, capsys, tiny_bundle, "/help\n/quit\nhi\n")
    assert out == ""
    commands = (
        "/preference TEXT, /weight NAME=W, /beta X, /undo N, /reset, /fork, /chat N, /save FILE, /load FILE, /help"
    )
    for command in [*commands.split(", "), "/quit", "//TEXT"]:
        assert command in err


def test_turns_are_taken_back(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "/undo\nhi\nand now?\nwhat?\n/undo 2\nwhat?\n/undo\n/undo 1\n/undo\nhi\n"
    out, err = chat(monkeypatch, capsys, tiny_bundle, lines)
    first, second = converse(generator, "hi", "and now?", "what?"), converse(generator, "hi", "what?")
    assert out == first + second.partition("\n")[2] + converse(generator, "hi")
    nothing = "pad: error: /undo 1; expected a chat that has turns"
    assert err.splitlines() == [
        nothing,
        '1 turn, the last "hi"; no preference, beta 1',
        '1 turn, the last "hi"; no preference, beta 1',
        "0 turns; no preference, beta 1",
        nothing,
    ]


def test_a_fork_leaves_the_chat_as_it_is(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a message of more than forty characters, cut"
    lines = f"hi\n/fork\n/weight cheerful=0.5\n{long}\n/chat 1\nand now?\n/chat\n/chat 2\n/undo\n/chat 3\n"
    out, err = chat(monkeypatch, capsys, tiny_bundle, lines)
    plain = converse(generator, "hi", "and now?").partition("\n")
    messages = [*exchange("hi", plain[0]), user(long)]
    guided = generator.generate(messages, preference=Preference(weights={"cheerful": 0.5}), config=SHORT).text
    assert out == f"{plain[0]}\n{guided}\n{plain[2]}"
    assert err.splitlines() == [
        '* chat 2: 1 turn, the last "hi"; no preference, beta 1',
        "cheerful 0.5, beta 1",
        '* chat 1: 1 turn, the last "hi"; no preference, beta 1',
        '* chat 1: 2 turns, the last "and now?"; no preference, beta 1',
        '  chat 2: 2 turns, the last "a message of more than forty..."; cheerful 0.5, beta 1',
        '* chat 2: 2 turns, the last "a message of more than forty..."; cheerful 0.5, beta 1',
        '1 turn, the last "hi"; cheerful 0.5, beta 1',
        "pad: error: /chat 3; expected a number from 1 to 2",
    ]


def test_a_chat_is_saved_and_loaded(
    tiny_bundle: Path,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = converse(generator, "hi", "and now?", preference=Preference("short", {"cheerful": 0.5}), beta=2.0)
    guided = ("--preference", "short", "--weight", "cheerful=0.5", "--beta", "2")
    out, err = chat(monkeypatch, capsys, tiny_bundle, "hi\n/save ~/a chat\n", *guided)
    assert err == f"saved as {tmp_path / 'a chat'}\n"
    shown = '1 turn, the last "hi"; preference "short", cheerful 0.5, beta 2'
    again, err = chat(monkeypatch, capsys, tiny_bundle, "/load ~/a chat\nand now?\n")
    assert (out + again, err) == (expected, f"* chat 1: {shown}\n")
    again, err = chat(monkeypatch, capsys, tiny_bundle, "hi\n/load ~/a chat\nand now?\n/chat 1\n")
    assert again == converse(generator, "hi") + expected.partition("\n")[2]
    assert err == f'* chat 2: {shown}\n* chat 1: 1 turn, the last "hi"; no preference, beta 1\n'


def test_several_preferences_of_an_app_in_a_loaded_chat(
    tiny_bundle: Path,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They guide, are shown, and give way to what is typed."""
    pairs = [("short", 0.5), (Preference("long", {"cheerful": 1.0}), 1.0)]
    generator.conversation(preference=pairs, config=SHORT).save(tmp_path / "chat")
    out, err = chat(monkeypatch, capsys, tiny_bundle, f"/load {tmp_path / 'chat'}\nhi\n/weight cheerful=2\n")
    assert out == converse(generator, "hi", preference=pairs)
    assert err.splitlines() == [
        '* chat 1: 0 turns; preference "short" (times 0.5), preference "long", cheerful 1, beta 1',
        "cheerful 2, beta 1",
    ]


@pytest.mark.parametrize("pieces", [("some ", "words"), ()])
def test_ctrl_c_stops_one_reply(
    tiny_bundle: Path,
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pieces: tuple[str, ...],
) -> None:
    expected = converse(generator, "hi")
    if pieces:  # what was shown is remembered
        messages = [
            {"role": "user", "content": "go on"},
            {"role": "assistant", "content": "some words"},
            {"role": "user", "content": "hi"},
        ]
        expected = "some words\n" + generator.generate(messages, config=SHORT).text + "\n"
    monkeypatch.setattr(Ticket, "__next__", interrupted_reply(pieces=pieces))
    out, err = chat(monkeypatch, capsys, tiny_bundle, "go on\nhi\n")
    assert out == expected
    assert err == ("" if pieces else "\n")


def test_a_base_without_a_chat_template(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((bundle / "pad.json").read_text())
    edit_manifest(bundle, tokenizer={**manifest["tokenizer"], "chat_template": None})
    assert main(["chat", str(bundle)]) == 2
    assert "no chat template; expected a chat model; use pad generate" in error_line(capsys.readouterr().err, "pad")
    assert main(["generate", str(bundle), "hi", "--max-new-tokens", "2"]) == 0


def test_a_chat_in_a_real_terminal(tiny_bundle: Path, tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(PAD[0], [*PAD, "chat", str(tiny_bundle), "--max-new-tokens", "6"])
    shown = b""

    def wait_for(words: bytes, *, after: bytes = b"") -> None:
        """Type `after`, again if it is not heard while the prompt is being set up, and wait for `words`."""
        nonlocal shown
        os.write(terminal, after)
        for _ in range(60):
            if words in shown:
                break
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096)
            else:
                os.write(terminal, after)
        assert words in shown
        shown = shown.partition(words)[2]

    wait_for(b"/help lists the commands")
    wait_for(b"> ")
    wait_for(b"> ", after=b"half a line\x03")  # Ctrl-C drops the line
    wait_for(b"no preference, beta 2", after=b"/beta 2\n")
    wait_for(b"> ")
    wait_for(b"\n", after=b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)


def test_ctrl_c_while_a_piped_chat_waits(tiny_bundle: Path) -> None:
    process = subprocess.Popen(
        [*PAD, "chat", str(tiny_bundle), "--max-new-tokens", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"hi\n")
    process.stdin.flush()
    assert process.stderr
    process.stdout.readline()
    assert process.stderr.readline() == b"cut at 2 tokens (--max-new-tokens)\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == b""

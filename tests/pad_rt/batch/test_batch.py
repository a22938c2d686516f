"""`pad batch`: each line's reply is the generator's own, and whatever happens, what was done is kept."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from pad_rt import Generator, Preference
from pad_rt.batch.answerer import Answerer, BatchOptions
from pad_rt.batch.lines import BatchLine, read_ids, read_lines
from pad_rt.batch.progress import Progress
from pad_rt.batch.results import Results
from pad_rt.batch.run import run_batch
from pad_rt.cli.main import main
from pad_rt.engine.ticket import Ticket
from pad_rt.text.prompt import EncodedPrompt
from pad_runtime.errors import BundleError, OutOfMemoryError
from tests.support.error_checks import error_line, refused
from tests.support.pad_command import PAD
from tests.support.small_disk import largest_file

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    common = {"model": "bundle", "max_tokens": 6, "temperature": 0}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": common | body}


def chat(number: int, **body: Any) -> dict[str, Any]:
    return line(f"chat-{number}", messages=[{"role": "user", "content": f"egg {number}"}], **body)


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines))
    return path


def read_results(path: Path) -> dict[str | None, dict[str, Any]]:
    """The output by custom_id; each line is whole."""
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    results = [json.loads(each) for each in text.splitlines()]
    assert len({each["id"] for each in results}) == len(results)
    return {each["custom_id"]: each for each in results}


def reply_of(result: dict[str, Any]) -> list[str]:
    assert result["error"] is None
    assert result["response"]["status_code"] == 200, result
    choices = result["response"]["body"]["choices"]
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices]


def run(bundle: Path, source: Path, output: Path, *options: str) -> int:
    return main(["batch", str(bundle), str(source), "-o", str(output), "--threads", "1", *options])


# -- replies ----------------------------------------------------------------------------------------------------------


def test_each_reply_is_what_the_generator_gives(bundle: Path, tmp_path: Path, generator: Generator) -> None:
    people = tmp_path / "people.json"
    people.write_text(json.dumps({"anna": {"weights": {"cheerful": -1.0}}}))
    source = write_lines(
        tmp_path / "in.jsonl",
        [
            *(chat(number, pad={"weights": {"cheerful": number - 2.0}}) for number in range(5)),
            chat(5),
            chat(6, model="bundle:anna"),
            chat(7, n=3, temperature=1, seed=4, pad={"weights": {"cheerful": 1.0}, "top_k": 5}),
            line("text", TEXT, prompt=["the cook", "a"]),
        ],
    )
    output = tmp_path / "out.jsonl"
    assert run(bundle, source, output, "--people", str(people)) == 0
    results = read_results(output)
    assert len(results) == 9

    def alone(prompt: Any, weight: float | None, **config: Any) -> str:
        preference = None if weight is None else Preference(weights={"cheerful": weight})
        return generator.generate(prompt, preference=preference, config={"max_new_tokens": 6, **config}).text

    for number in range(5):
        assert reply_of(results[f"chat-{number}"]) == [alone(f"egg {number}", number - 2.0)]
    assert reply_of(results["chat-5"]) == [alone("egg 5", None)]
    assert reply_of(results["chat-6"]) == [alone("egg 6", -1.0)]
    assert reply_of(results["chat-7"]) == [alone("egg 7", 1.0, temperature=1.0, seed=4 + i, top_k=5) for i in range(3)]
    assert reply_of(results["text"]) == [
        alone(EncodedPrompt(generator.encode(text)), None) for text in ("the cook", "a")
    ]
    assert alone("egg 4", -2.0) != alone("egg 4", 2.0), "the preference matters"
    fingerprints = {result["response"]["body"]["system_fingerprint"] for result in results.values()}
    assert fingerprints == {f"fp_{generator.manifest.digest[:16]}"}, "as of the server's replies"
    request_ids = {result["response"]["request_id"] for result in results.values()}
    assert len(request_ids) == 9
    assert all(result["response"]["body"]["usage"]["completion_tokens"] for result in results.values())


def test_a_bad_line_becomes_an_error_and_the_others_are_answered(bundle: Path, tmp_path: Path) -> None:
    first = json.dumps(chat(0))
    no_lines: list[tuple[str, str]] = [
        ("{not json\n", "invalid_json_line"),
        ("[" * 100_000 + "\n", "invalid_json_line"),
        ("[1]\n", "invalid_json_line"),
        ('{"body": {}}\n', "missing_custom_id"),
        ('{"custom_id": 3}\n', "missing_custom_id"),
        (first + "\n", "duplicate_custom_id"),
        (first + " \n", "duplicate_custom_id"),
        (json.dumps({**chat(1), "retries": 3}) + "\n", "unknown_field"),
        (json.dumps({**chat(2), "method": "GET"}) + "\n", "invalid_method"),
        (json.dumps({**chat(3), "url": "/v1/embeddings"}) + "\n", "invalid_url"),
        (json.dumps({**chat(4), "body": None}) + "\n", "invalid_body"),
    ]
    refusals: list[tuple[dict[str, Any], int, str | None]] = [
        (chat(10, model="gpt-7"), 404, "model"),
        (chat(11, model="bundle:bob"), 404, "model"),
        (chat(12, tools=[{"type": "function"}]), 400, "tools"),
        (chat(13, temperature=-1), 400, "temperature"),
        (chat(14, pad={"weights": {"sad": 1}}), 400, "pad"),
        (chat(15, stream=True), 400, "stream"),
        (line("long", TEXT, prompt="egg " * 1000), 400, "prompt"),
    ]
    lines = [first + "\n", "\n", *(text for text, _ in no_lines), *(body for body, _, _ in refusals), chat(20)]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert run(bundle, source, output) == 0
    text = output.read_text(encoding="utf-8")
    results = {each["id"]: each for each in map(json.loads, text.splitlines())}
    ordered = [results[id] for id in read_ids(source)]
    assert len(ordered) == len(results) == len(lines) - 1, "a blank line is none"
    assert reply_of(ordered[0])
    assert reply_of(ordered[-1])
    for number, (result, (_, code)) in enumerate(zip(ordered[1:], no_lines, strict=False), 3):
        assert result["response"] is None
        assert (result["error"]["code"], result["error"]["line"]) == (code, number)
    for result, (body, status, param) in zip(ordered[1 + len(no_lines) :], refusals, strict=False):
        assert (result["custom_id"], result["error"]) == (body["custom_id"], None)
        assert result["response"]["status_code"] == status
        assert result["response"]["body"]["error"]["param"] == param, result


def test_text_that_utf8_cannot_hold_is_kept(bundle: Path, tmp_path: Path) -> None:
    odd = {**chat(0), "custom_id": "half \ud800 東京"}
    source = write_lines(tmp_path / "in.jsonl", [odd, chat(1)])
    source.write_bytes(source.read_bytes() + b'{"custom_id": "\xff"}\n')
    assert run(bundle, source, tmp_path / "out.jsonl") == 0
    results = read_results(tmp_path / "out.jsonl")
    assert reply_of(results["half \ud800 東京"]) == reply_of(results["chat-1"]) or len(results) == 3
    assert results[None]["error"]["code"] == "invalid_json_line"


# -- begun again ------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_begun_again_goes_on(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_lines(tmp_path / "in.jsonl", [chat(number) for number in range(8)])
    output = tmp_path / "out.jsonl"
    assert run(bundle, source, output) == 0
    whole = output.read_bytes().splitlines(keepends=True)
    answered: list[str | None] = []
    answer = Answerer.answer
    monkeypatch.setattr(Answerer, "answer", lambda self, line: answered.append(line.custom_id) or answer(self, line))
    for torn in (b"", whole[5][:1], whole[5][:30], whole[5][:-1]):
        answered.clear()
        output.write_bytes(b"".join(whole[:5]) + torn)
        assert run(bundle, source, output) == 0
        assert output.read_bytes().startswith(b"".join(whole[:5])), "whole lines stay as they are"
        assert len(read_results(output)) == 8
        assert sorted(answered) == sorted(json.loads(each)["custom_id"] for each in whole[5:])
    answered.clear()
    assert run(bundle, source, output) == 0
    assert answered == []


def test_lines_may_be_added_and_moved_between_two_runs(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(bundle, write_lines(tmp_path / "in.jsonl", [chat(0), chat(1)]), output) == 0
    before = read_results(output)
    assert run(bundle, write_lines(tmp_path / "in.jsonl", [chat(2), chat(1), "\n", chat(0)]), output) == 0
    after = read_results(output)
    assert len(after) == 3
    assert {name: after[name] for name in before} == before


def test_ctrl_c_loses_nothing_that_was_done(bundle: Path, tmp_path: Path) -> None:
    lines = [chat(number, max_tokens=100) for number in range(300)]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    command = [*PAD, "batch", str(bundle), str(source), "-o", str(output), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    done = read_results(output)
    assert 0 < len(done) < 300
    assert f"pad: {len(done)} of 300 lines done" in err
    assert run(bundle, source, output, "--quiet") == 0
    results = read_results(output)
    assert len(results) == 300
    assert {name: results[name] for name in done} == done
    assert all(reply_of(result) for result in results.values())


def test_two_runs_at_once_do_not_answer_a_line_twice(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", [chat(0)]), tmp_path / "out.jsonl"
    ids = read_ids(source)
    first = Results(output, ids)
    assert run(bundle, source, output) == 2
    expected = f"pad: error: {output} is being written by another process; wait for it, or name another file with -o"
    assert error_line(capsys.readouterr().err, "pad") == expected
    first.close()
    assert run(bundle, source, output) == 0

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    for missing in (None, SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4)):  # as on Windows, and on network disks
        monkeypatch.setattr("pad_rt.batch.results.fcntl", missing)
        results = Results(output, ids)
        assert results.done == set(ids)
        results.close()


# -- files that are none ----------------------------------------------------------------------------------------------


def test_a_bad_file_is_one_line_and_exit_code_2(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", [chat(0)]), tmp_path / "out.jsonl"
    empty, foreign, torn = tmp_path / "empty", tmp_path / "notes.txt", tmp_path / "torn"
    empty.write_text("\n \n")
    foreign.write_text("do not lose this\n")
    torn.write_text("do not lose this")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    other = write_lines(tmp_path / "other.jsonl", [chat(9)])
    assert run(bundle, other, tmp_path / "other.out") == 0
    capsys.readouterr()
    cases = [
        ((bundle, tmp_path / "absent", output), "absent cannot be read: No such file"),
        ((bundle, tmp_path, output), "cannot be read: Is a directory"),
        ((bundle, empty, output), "empty has no lines; expected a JSON object with custom_id"),
        ((tmp_path / "absent", source, output), "no bundle at"),
        ((bundle, source, source), "as input and output; expected two files"),
        ((bundle, source, tmp_path / "absent" / "out"), "cannot be written: No such file"),
        ((bundle, source, foreign), "notes.txt holds no result of this input in line 1"),
        ((bundle, source, torn), "torn holds no result of this input in line 1"),
        ((bundle, source, tmp_path / "other.out"), "holds no result of this input in line 1"),
        ((bundle, source, tmp_path / "other.out"), "if it is the result of a line that was changed, delete it"),
        ((bundle, source, pipe), "pipe is no regular file; expected a new file"),
        ((bundle, pipe, output), "pipe is no regular file; expected one of requests, which is read twice"),
        ((bundle, source, output, "--people", str(tmp_path / "absent")), "cannot be read: No such file"),
        ((bundle, source, output, "--device", "tpu"), "device 'tpu'"),
    ]
    for arguments, words in cases:
        assert run(*arguments) == 2, words
        assert words in error_line(capsys.readouterr().err, "pad")
    assert foreign.read_text() == "do not lose this\n"
    assert torn.read_text() == "do not lose this"
    for wrong in (["--replicas", "0"], ["--gpus", "x"], ["--max-new-tokens", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            run(bundle, source, output, *wrong)


def test_a_full_disk_ends_the_run_with_whole_lines(bundle: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [chat(number) for number in range(12)])
    output = tmp_path / "out.jsonl"
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with largest_file(1500):
            assert run(bundle, source, output) == 2
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert 0 < len(read_results(output)) < 12
    assert run(bundle, source, output) == 0
    assert len(read_results(output)) == 12


# -- the run ----------------------------------------------------------------------------------------------------------


class Fake:
    """Answers without a generator."""

    def __init__(self, num_places: int, answer: Any) -> None:
        self.num_places, self._answer, self.is_closed = num_places, answer, False

    def answer(self, line: BatchLine) -> dict[str, Any]:
        self._answer(line)
        body = {"usage": {"completion_tokens": 1}}
        response = {"status_code": 200, "request_id": "", "body": body}
        return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": None}

    def close(self) -> None:
        self.is_closed = True


def run_fake(tmp_path: Path, fake: Fake, num_lines: int) -> dict[str | None, dict[str, Any]]:
    source = write_lines(tmp_path / "in.jsonl", [chat(number) for number in range(num_lines)])
    results = Results(tmp_path / "out.jsonl", read_ids(source))
    try:
        run_batch(read_lines(source), results, fake, Progress(num_lines, 0, is_quiet=True))
    finally:
        results.close()
        assert fake.is_closed
    return read_results(tmp_path / "out.jsonl")


def test_as_many_lines_run_at_once_as_there_are_places(tmp_path: Path) -> None:
    together = Barrier(5, timeout=60)
    assert len(run_fake(tmp_path, Fake(5, lambda _: together.wait()), 20)) == 20


def test_what_ends_every_line_ends_the_run(tmp_path: Path) -> None:
    def answer(line: BatchLine) -> None:
        if line.number == 4:
            raise BundleError("the bundle was changed", hint="export it again")

    with refused(BundleError, given="the bundle was changed", hint="export it again"):
        run_fake(tmp_path, Fake(1, answer), 10)
    done = set(read_results(tmp_path / "out.jsonl"))
    assert {"chat-0", "chat-1", "chat-2"} <= done
    assert "chat-3" not in done


@pytest.mark.parametrize("error", [OutOfMemoryError("no memory", hint="shorter"), BundleError("changed", hint="again")])
def test_what_fails_one_line_is_its_result_and_what_fails_all_is_raised(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    answerer = Answerer(BatchOptions(bundle=bundle, threads=1))
    (first,) = read_lines(write_lines(tmp_path / "in.jsonl", [chat(0)]))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Ticket, "__next__", fail)
    if isinstance(error, OutOfMemoryError):
        response = answerer.answer(first)["response"]
        assert response["status_code"] == 503
        assert response["body"]["error"]["code"] == "out_of_memory"
    else:
        with pytest.raises(BundleError):
            answerer.answer(first)


def test_an_answerer_that_is_closed_ends_what_it_answers(bundle: Path, tmp_path: Path) -> None:
    lines = list(read_lines(write_lines(tmp_path / "in.jsonl", [chat(number, max_tokens=200) for number in range(2)])))
    answerer = Answerer(BatchOptions(bundle=bundle, threads=1))
    answerer.close()
    with pytest.raises(Exception, match=r"closed|ended|cancelled") as caught:
        answerer.answer(lines[0])
    assert not isinstance(caught.value, CancelledError)


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = {"response": None, "error": {}}
    monkeypatch.setattr("time.monotonic", iter(range(0, 100_000, 20)).__next__)
    for is_terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        progress = Progress(4, 1)
        progress.count(refusal)
        progress.show()
        progress.count({"response": {"status_code": 200, "body": {"usage": {"completion_tokens": 60}}}})
        progress.close()
        err = capsys.readouterr().err
        bars = ["[" + "#" * 15 + " " * 15 + "] ", "[" + "#" * 22 + " " * 8 + "] "] if is_terminal else ["", ""]
        end = "\r" if is_terminal else "\n"
        assert err == (
            f"pad: {bars[0]}2 of 4 lines done, 1 of them refused, 0 tokens/s{end}"
            f"pad: {bars[1]}3 of 4 lines done, 1 of them refused, 1 tokens/s\n"
        )


def test_a_shorter_bar_covers_the_longer_one_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", iter([0, 1, 1, 1.1]).__next__)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress(2, 1)
    progress.count({"response": {"status_code": 200, "body": {"usage": {"completion_tokens": 1000}}}})
    progress.show()
    progress.close()
    long, short = capsys.readouterr().err.split("\r")
    assert long.endswith(" 1000 tokens/s")
    assert short.endswith(" 909 tokens/s \n")


def test_quiet_prints_nothing(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "in.jsonl", [chat(0)])
    assert run(bundle, source, tmp_path / "out.jsonl", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_neither_ray_nor_a_web_server_is_imported(bundle: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [chat(0)])
    code = (
        "import sys\nfrom pad_rt.cli.main import main\nassert main(sys.argv[1:]) == 0\n"
        "print({'ray', 'starlette', 'uvicorn', 'asyncio'} & set(sys.modules))"
    )
    arguments = ["batch", str(bundle), str(source), "-o", str(tmp_path / "out.jsonl"), "--quiet"]
    ended = subprocess.run([PAD[0], "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_without_ray_the_extra_is_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pad_rt.batch.cluster", raising=False)
    source = write_lines(tmp_path / "in.jsonl", [chat(0)])
    assert run(bundle, source, tmp_path / "out.jsonl", "--ray") == 2
    assert error_line(capsys.readouterr().err, "pad") == "pad: error: ray is not installed; pip install 'pad-rt[ray]'"

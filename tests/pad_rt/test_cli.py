from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_cuda
from error_checks import edit_manifest, error_line
from pad_rt import GenerationConfig, Generator, Preference
from pad_rt.cli import main

PAD = [sys.executable, "-c", "import sys; from pad_rt.cli import main; sys.exit(main())"]
SHORT = GenerationConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator.load(tiny_bundle, num_threads=1)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def pipe_in(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# -- generate -------------------------------------------------------------------------------------------------------


def test_generate_streams_the_reply(
    tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, preference in (([], None), (["--preference", "short"], "short")):
        assert main(["generate", str(tiny_bundle), "hi", "--max-new-tokens", "6", *options]) == 0
        out, err = capsys.readouterr()
        assert out == generator.generate("hi", preference=preference, config=SHORT).text + "\n"
        assert err == ""


def test_every_piece_is_flushed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.BytesIO()
    seen: list[bytes] = []

    def stream(*args: Any, **kwargs: Any) -> Iterator[str]:
        for piece in ("one ", "two"):
            yield piece
            seen.append(terminal.getvalue())

    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(terminal, encoding="utf-8"))
    monkeypatch.setattr(Generator, "stream", stream)
    assert main(["generate", str(tiny_bundle), "hi"]) == 0
    assert seen == [b"one ", b"one two"]
    assert terminal.getvalue() == b"one two\n"


def test_generate_json(tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preference", "short", "--weight", "cheerful=0.5", "--max-new-tokens", "6", "--beta", "2", "--json"]
    assert main(["generate", str(tiny_bundle), "hi", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    record = json.loads(out)
    config = GenerationConfig(beta=2.0, max_new_tokens=6)
    expected = generator.generate("hi", preference=Preference("short", {"cheerful": 0.5}), config=config)
    assert record["text"] == expected.text
    assert record["token_ids"] == list(expected.token_ids)
    assert record["finish_reason"] == expected.finish_reason
    assert record["preference"] == {"text": "short", "weights": {"cheerful": 0.5}}
    timing = record["timing"]
    assert timing.keys() == {"prefill_s", "first_token_s", "step_s", "tokens_per_s", "bytes_to_host_per_token"}
    assert 0 < timing["prefill_s"] < timing["first_token_s"]
    assert GenerationConfig.from_mapping(record["config"]) == config


def test_every_option_arrives(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "--beta": ("-0.5", "beta", -0.5),
        "--top-k": ("3", "top_k", 3),
        "--max-new-tokens": ("2", "max_new_tokens", 2),
        "--temperature": ("0.7", "temperature", 0.7),
        "--top-p": ("0.9", "top_p", 0.9),
        "--seed": ("7", "seed", 7),
    }
    arguments = [word for option, (text, _, _) in options.items() for word in (option, text)]
    arguments += ["--stop", "xx", "--stop", "yy", "--base-sees-preference", "--device", "cpu", "--threads", "1"]
    assert main(["generate", str(tiny_bundle), "hi", "--json", *arguments]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    expected = {name: value for _, name, value in options.values()}
    assert config == {**expected, "stop": ["xx", "yy"], "base_sees_preference": True}


def test_the_defaults_are_those_of_the_library(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_bundle), "hi", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert GenerationConfig.from_mapping(record["config"]) == GenerationConfig()
    assert record["preference"] is None


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_prompt_from_stdin(
    tiny_bundle: Path,
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: str,
) -> None:
    pipe_in(monkeypatch, "naïve\ncafé" + ending)
    assert main(["generate", str(tiny_bundle), "-", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == generator.generate("naïve\ncafé", config=SHORT).text + "\n"


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "--beta", "1"], "an empty prompt; expected some text"),
        (["hi", "--beta", "nan"], "beta=nan; expected a finite number"),
        (["hi", "--top-k", "0"], "top_k=0; expected an integer >= 1"),
        (["hi", "--top-k", "21"], "top_k 21; expected at most 20; export with a larger --max-top-k"),
        (["hi", "--temperature", "-1"], "temperature=-1.0; expected a finite number >= 0"),
        (["hi", "--stop", ""], "stop=['']; expected a non-empty string"),
        (["hi", "--preference", " "], "an empty preference text; expected words"),
        (["hi", "--weight", "cheerful"], "--weight 'cheerful'; expected NAME=W"),
        (["hi", "--weight", "sad=1"], "unknown feature 'sad'; expected one of cheerful"),
        (["hi", "--weight", "a=1", "--weight", "a=2"], "--weight a given twice; expected one weight a feature"),
        (["hi", "--device", "tpu"], "device 'tpu'; expected one of auto, tensorrt, tensorrt-rtx, cuda,"),
        (["hi", "--threads", "0"], "num_threads 0; expected a whole number, at least 1"),
        (["x" * 300], "tokens; expected at most 255"),
        (["a\udcffb"], "lone surrogate"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    for extra in ([], ["--json"]):
        assert main(["generate", str(tiny_bundle), *arguments, *extra]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert words in error_line(err, "pad")
        assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["generate", "BUNDLE", "hi"], ["chat", "BUNDLE"], ["info", "BUNDLE"]])
def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    for folder, words in ((tmp_path / "absent", "no bundle at"), (tmp_path, "has no pad.json")):
        assert main([str(folder) if word == "BUNDLE" else word for word in command]) == 2
        assert words in error_line(capsys.readouterr().err, "pad")


@pytest.mark.parametrize(
    "arguments",
    [[], ["bake"], ["generate"], ["generate", "x"], ["generate", "x", "y", "--beta", "much"], ["info", "x", "--chec"]],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Generator, "open", fail)
    with pytest.raises(ZeroDivisionError):
        main(["generate", str(tiny_bundle), "hi"])


def test_bytes_that_are_no_text(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe_in(monkeypatch, b"a\xffb")
    assert main(["generate", str(tiny_bundle), "-"]) == 2
    assert "lone surrogate" in error_line(capsys.readouterr().err, "pad")


def test_onnxruntime_adds_no_lines_of_its_own(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (bundle / "weights.bin").write_bytes(b"")
    edit_manifest(bundle, rehash=True)
    assert main(["generate", str(bundle), "hi"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert f"ONNX Runtime cannot open {bundle / 'base.onnx'}" in error_line(err, "pad")
    assert err.count("\n") == 1


def test_ctrl_c_ends_generate(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Generator, "stream", interrupted_stream())
    assert main(["generate", str(tiny_bundle), "hi"]) == 130
    out, err = capsys.readouterr()
    assert out == "some"
    assert err == "\n"


def interrupted_stream(*, pieces: tuple[str, ...] = ("some",), times: int = 1) -> Any:
    """A `Generator.stream` that Ctrl-C interrupts after these pieces, the first few times."""
    real = Generator.stream
    calls: list[int] = []

    def stream(self: Generator, *args: Any, **kwargs: Any) -> Iterator[str]:
        calls.append(0)
        if len(calls) > times:
            yield from real(self, *args, **kwargs)
            return
        yield from pieces
        raise KeyboardInterrupt

    return stream


def test_a_closed_pipe_is_quiet(tiny_bundle: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    for arguments in (["generate", str(tiny_bundle), "hi"], ["info", str(tiny_bundle)]):
        process = subprocess.run([*PAD, *arguments], stdout=write, stderr=subprocess.PIPE, check=False, timeout=60)
        assert process.returncode == 141
        assert process.stderr == b""
    os.close(write)


def test_a_narrow_terminal(tiny_bundle: Path, generator: Generator) -> None:
    arguments = [*PAD, "generate", str(tiny_bundle), "hi", "--max-new-tokens", "6"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = subprocess.run(arguments, env=environment, capture_output=True, check=False, timeout=60)
    assert process.returncode == 0, process.stderr
    expected = generator.generate("hi", config=SHORT).text
    assert process.stdout == expected.encode("ascii", "replace") + b"\n"


def test_help_and_version_load_nothing_heavy() -> None:
    script = (
        "import sys\nfrom pad_rt.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'jinja2'} & sys.modules.keys()\n"
        "sys.exit(f'{code} {sorted(heavy)}' if code or heavy else 0)"
    )
    for argument, words in (("--help", "generate"), ("--version", "pad 0.")):
        process = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        assert words in process.stdout


# -- chat -----------------------------------------------------------------------------------------------------------


def chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundle: Path, lines: str, *options: str
) -> tuple[str, str]:
    """Replies and notes of a chat with these lines piped in."""
    pipe_in(monkeypatch, lines)
    assert main(["chat", str(bundle), "--max-new-tokens", "6", *options]) == 0
    out, err = capsys.readouterr()
    return out, err


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


def test_a_chat_remembers(
    tiny_bundle: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = chat(monkeypatch, capsys, tiny_bundle, "hi\n\nand now?\n", "--preference", "short")
    assert out == converse(generator, "hi", "and now?", preference="short")
    assert out != converse(generator, "hi", preference="short") + converse(generator, "and now?", preference="short")
    assert err == ""


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
        ("/bake a cake", "unknown command '/bake'; expected one of /preference, /weight, /beta, /reset, /help, /quit"),
        ("/", "unknown command '/'"),
        ("/beta", "/beta; expected a number"),
        ("/beta much", "/beta much; expected a number"),
        ("/beta nan", "beta=nan; expected a finite number"),
        ("/weight cheerful", "--weight 'cheerful'; expected NAME=W"),
        ("/weight sad=1", "unknown feature 'sad'; expected one of cheerful"),
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
    for command in ("/preference TEXT", "/weight NAME=W", "/beta X", "/reset", "/help", "/quit"):
        assert command in err


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
    monkeypatch.setattr(Generator, "stream", interrupted_stream(pieces=pieces))
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
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == b""


# -- info -----------------------------------------------------------------------------------------------------------


def test_info_tells_what_a_bundle_holds(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_bundle)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in (
        str(tiny_bundle),
        "base: llama, 2 layers of 84, 6 heads over 2 KV heads of 16, adapters at qkv, o, gate_up, down",
        "shared: ",
        "fp32 weights, float32 activations, ort dialect",
        "256 tokens of prompt and reply (max_length)",
        "3 sequences at once (max_batch), 20 candidates (max_top_k)",
        "cheerful: LoRA adapter",
        "cheerful=1",
        "[Principles] {p} [Instruction] {x}",
        "weights.bin",
        "torch 2.",
        "onnxruntime 1.",
        "--device tensorrt: no, ",
        "cuda: no, device 'cuda' is not available in this onnxruntime, which has",
        "cpu: yes, onnxruntime 1.",
    ):
        assert words in " ".join(out.split())
    assert "whole" not in out
    assert max(map(len, out.splitlines())) < 100 + len(str(tiny_bundle))


def test_info_json(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_bundle), "--check", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["manifest"] == json.loads((tiny_bundle / "pad.json").read_text())
    assert record["size"] == sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    assert record["checked"] is True
    usable = {finding["device"]: finding["usable"] for finding in record["here"]["devices"]}
    assert usable["cpu"]
    assert not usable["tensorrt"]
    assert record["here"]["gpu"] is None


def test_info_describes_a_gpu(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_cuda.install(monkeypatch)
    assert main(["info", str(tiny_bundle)]) == 0
    assert "gpu         NVIDIA Thing, sm89, 8.00 GiB, CUDA 12.8 over a driver for 13.0" in capsys.readouterr().out


def test_info_check_finds_a_flipped_bit_in_the_weights(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pad_runtime.manifest._SMALL_FILE", 1000)  # as if these weights were large
    assert main(["info", str(bundle), "--check"]) == 0
    assert "every file whole" in capsys.readouterr().out
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[5000] ^= 1
    (bundle / "weights.bin").write_bytes(data)
    assert main(["info", str(bundle)]) == 0
    assert main(["info", str(bundle), "--check"]) == 2
    line = error_line(capsys.readouterr().err, "pad")
    assert f"{bundle / 'weights.bin'} was altered" in line
    assert "copy it again" in line


def test_info_needs_no_onnxruntime(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["info", str(tiny_bundle)]) == 0
    assert "onnxruntime is not installed" in capsys.readouterr().out

"""Standard streams that are closed, full or broken, input without end, and numbers beyond all measure: one line each.

The real commands in processes of their own: each case says what is on stderr, and the exit code.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pad_rt import Generator
from pad_runtime.command import MAX_STDIN
from pad_runtime.devices.threads import check_threads
from pad_runtime.errors import DeviceError
from tests.support.pad_command import CUT, PAD, SHORT

EXPORT = [sys.executable, "-c", "import sys; from pad_export.cli import main; sys.exit(main())"]
TRAIN = [sys.executable, "-c", "import sys; from pad_train.cli import main; sys.exit(main())"]
COMMANDS = {
    "pad generate": [*PAD, "generate", "BUNDLE", "hi", "--threads", "1"],
    "pad generate --json": [*PAD, "generate", "BUNDLE", "hi", "--json", "--threads", "1"],
    "pad score": [*PAD, "score", "BUNDLE", "hi", "egg", "--threads", "1"],
    "pad chat": [*PAD, "chat", "BUNDLE", "--threads", "1", "--max-new-tokens", "2"],
    "pad info": [*PAD, "info", "BUNDLE"],
    "pad info --json": [*PAD, "info", "BUNDLE", "--json"],
    "pad --help": [*PAD, "--help"],
    "pad-export --help": [*EXPORT, "--help"],
    "pad-export engines --help": [*EXPORT, "engines", "--help"],
    "pad-train --help": [*TRAIN, "--help"],
}


def shell(command: list[str], bundle: Path, redirection: str, **environment: str) -> tuple[int, str, str]:
    """Run a command as a shell would, and give its exit code, stdout and stderr."""
    words = [str(bundle) if word == "BUNDLE" else word for word in command]
    process = subprocess.run(
        ["bash", "-c", f"{shlex.join(words)} {redirection}"],
        input="hi\n",
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_on_stdout(tiny_bundle: Path, name: str) -> None:
    code, _, err = shell(COMMANDS[name], tiny_bundle, ">/dev/full")
    assert code == 2
    program = name.partition(" --")[0] if name.startswith("pad-export") else name.partition(" ")[0]
    assert err == (
        f"{program}: error: stdout cannot be written: No space left on device; expected a terminal, file or pipe that "
        "takes what is printed; send what is not wanted to /dev/null\n"
    )


@pytest.mark.parametrize("name", ["pad generate", "pad info", "pad --help", "pad-export --help"])
def test_a_closed_stdout(tiny_bundle: Path, name: str) -> None:
    code, _, err = shell(COMMANDS[name], tiny_bundle, ">&-")
    assert code == 2
    assert "error: stdout cannot be written: Bad file descriptor; expected a terminal, file or pipe" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_where_every_write_goes_through_at_once(tiny_bundle: Path) -> None:
    code, _, err = shell(COMMANDS["pad generate"], tiny_bundle, ">/dev/full", PYTHONUNBUFFERED="1")
    assert code == 2
    assert "No space left on device" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_takes_nothing_changes_nothing_else(tiny_bundle: Path, redirection: str) -> None:
    """What is for stderr does not turn up on stdout either."""
    generate = [*PAD, "generate", "BUNDLE", "hi", "--threads", "1", "--max-new-tokens", "6"]
    expected = Generator.load(tiny_bundle, num_threads=1).generate("hi", config=SHORT).text
    code, out, err = shell(generate, tiny_bundle, redirection)
    assert (code, out, err) == (0, expected + "\n", "")
    assert shell([*generate, "--beta", "nan"], tiny_bundle, redirection) == (2, "", "")
    assert shell([*generate, "--beta", "much"], tiny_bundle, redirection) == (2, "", "")
    assert shell(generate, tiny_bundle, "") == (0, expected + "\n", CUT)  # the control


def test_a_closed_stdin_that_nothing_reads(tiny_bundle: Path) -> None:
    generate = [*PAD, "generate", "BUNDLE", "hi", "--threads", "1", "--max-new-tokens", "6"]
    assert shell(generate, tiny_bundle, "<&-") == shell(generate, tiny_bundle, "")


@pytest.mark.parametrize("command", [["generate", "BUNDLE", "-"], ["chat", "BUNDLE", "--threads", "1"]])
@pytest.mark.parametrize(
    ("redirection", "words"),
    [("<&-", "stdin is closed"), ("0>written", "stdin cannot be read: Bad file descriptor")],
)
def test_a_stdin_that_cannot_be_read(
    tiny_bundle: Path, tmp_path: Path, command: list[str], redirection: str, words: str
) -> None:
    redirection = redirection.replace("written", shlex.quote(str(tmp_path / "written")))
    code, out, err = shell([*PAD, *command], tiny_bundle, redirection)
    assert (code, out, err) == (2, "", f"pad: error: {words}; expected the prompt on stdin\n")


@pytest.mark.parametrize("command", [["generate", "BUNDLE", "-"], ["chat", "BUNDLE", "--threads", "1"]])
def test_input_without_end_is_refused_and_not_kept(tiny_bundle: Path, command: list[str]) -> None:
    """A stream that never ends, on one line: no more than the limit is read, and none of it encoded."""
    endless = f'< <({shlex.quote(sys.executable)} -c \'while True: print("x" * 65536, end="")\' 2>/dev/null)'
    code, out, err = shell([*PAD, *command], tiny_bundle, endless)
    assert (code, out) == (2, "")
    assert err == f"pad: error: more than {MAX_STDIN:,} characters on stdin; expected a prompt; shorten it\n"


def test_a_text_of_megabytes_is_refused_before_it_is_encoded(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "long").write_text("word " * 3_000_000)
    redirection = f"< {shlex.quote(str(tmp_path / 'long'))}"
    code, out, err = shell([*PAD, "generate", "BUNDLE", "-", "--threads", "1"], tiny_bundle, redirection)
    assert (code, out) == (2, "")
    assert "characters; expected at most 255 tokens: the bundle's max_length" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "words"), [(b"a\0b", CUT), (b"a\xffb", "pad: error: text with the lone surrogate '\\udcff' at character")]
)
def test_bytes_on_stdin(tiny_bundle: Path, data: bytes, words: str) -> None:
    """A NUL is a character as any other; bytes that are no UTF-8 are refused."""
    arguments = [*PAD, "generate", str(tiny_bundle), "-", "--threads", "1", "--max-new-tokens", "6"]
    process = subprocess.run(arguments, input=data, capture_output=True, check=False, timeout=120)
    assert process.returncode == (2 if b"\xff" in data else 0)
    assert process.stderr.decode().startswith(words)
    assert process.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "BUNDLE", "hi", "--beta", "much"],
        ["generate", "BUNDLE", "hi", "--system", "\udcff"],
        ["generate", "BUNDLE", "hi", "--preference", "\udcff"],
        ["generate", "BUNDLE", "hi", "--weight", "\udcff=1"],
        ["generate", "BUNDLE", "hi", "--device", "\udcff"],
        ["generate", "\udcff", "hi"],
        ["\udcff"],
    ],
)
def test_arguments_that_are_no_utf8(tiny_bundle: Path, arguments: list[str]) -> None:
    words = [str(tiny_bundle) if word == "BUNDLE" else word for word in arguments]
    process = subprocess.run([*PAD, *words], capture_output=True, check=False, timeout=120)
    assert process.returncode == 2
    assert b"error: " in process.stderr.splitlines()[-1]
    assert b"Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threads", "1000000"], "num_threads 1000000; expected a whole number, at least 1 and at most "),
        (["--threads", "0"], "num_threads 0; expected a whole number, at least 1 and at most "),
        (["--threads", "-1"], "num_threads -1; expected a whole number, at least 1 and at most "),
        (["--max-new-tokens", str(10**30)], ""),
        (["--max-new-tokens", "9" * 5000], "argument --max-new-tokens: invalid int value: "),
        (["--top-k", str(10**30)], f"top_k {10**30}; expected at most 20"),
        (["--seed", str(2**63)], f"seed={2**63}; expected an integer from 0 to {2**63 - 1}"),
        (["--stop-token-id", str(10**30)], f"stop_token_ids with {10**30}; expected ids below "),
        (["--temperature", "nan"], "temperature=nan; expected a finite number >= 0"),
        (["--top-p", "nan"], "top_p=nan; expected a number in (0, 1]"),
        (["--min-p", "1"], "min_p=1.0; expected a number in [0, 1)"),
        (["--repetition-penalty", "0"], "repetition_penalty=0.0; expected a number from 1e-25 to 1e+25"),
        (["--repetition-penalty", "1e-25", "--presence-penalty", "1e25", "--frequency-penalty=-1e25"], ""),
        (["--no-repeat-ngram", str(10**30)], ""),
        (["--logit-bias", "5=much"], "--logit-bias '5=much'; expected ID=B; such as 50256=-100"),
        (["--logit-bias", "5=1", "--logit-bias", "05=1"], "--logit-bias 5 given twice; expected one number a token"),
        (["--logit-bias", f"{10**30}=1"], f"logit_bias with {10**30}; expected ids below "),
        (["--logit-bias", "5=nan"], "logit_bias of token 5=nan; expected a number from -1e+25 to 1e+25"),
        (["--banned-token-id", "-1"], "banned_token_ids=-1; expected an integer >= 0"),
        (["--temperature", "1e-320", "--top-p", "1e-320"], ""),
        (["--temperature", "1e308"], ""),
    ],
)
def test_numbers_beyond_all_measure(tiny_bundle: Path, options: list[str], words: str) -> None:
    command = [*PAD, "generate", "BUNDLE", "hi", "--threads", "1", *options]
    code, _, err = shell(command, tiny_bundle, "")
    assert code == (2 if words else 0)
    assert words in err
    assert err.count("error: ") == bool(words)
    assert "Traceback" not in err


def test_as_many_threads_as_there_are_processors_or_64(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, most in ((2, 64), (None, 64), (96, 96)):
        monkeypatch.setattr("os.cpu_count", lambda processors=processors: processors)
        for count in (None, 1, most):
            check_threads(count)
        for wrong in (most + 1, True, 2.0, "2"):
            with pytest.raises(DeviceError, match=f"--threads .* at least 1 and at most {most}"):
                check_threads(wrong, name="--threads")


def test_a_reader_that_leaves_early(tiny_bundle: Path) -> None:
    """`pad ... | head -1`: no word on stderr, and the exit code that a shell gives to a broken pipe."""
    for name in ("pad info", "pad generate", "pad chat", "pad-export --help"):
        redirection = "| (exec <&-; true); exit ${PIPESTATUS[0]}"
        code, _, err = shell(COMMANDS[name], tiny_bundle, redirection)
        assert (code, err) == (141, "")

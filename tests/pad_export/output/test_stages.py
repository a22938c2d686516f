"""Progress in words where there is no terminal, as a bar where there is one, and nothing where it is not wanted."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from pad_export.output.stages import Stages
from pad_runtime.command import silent


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_of_a_stage() -> None:
    """One at its start and one after 15 seconds, with what is left by the rate of this run."""
    clock, lines = Clock(), list[str]()
    with Stages(lines.append, clock=clock).count("calibrating", "linears") as progress:
        progress.begin(1211, done=11)
        for _ in range(60):
            clock.now += 1.0
            progress(2)
        clock.now += 300.0
        progress(80, note="loss 0.512")
    assert lines == [
        "calibrating: 1,211 linears, 11 done before",
        "calibrating: 41 of 1,211 linears, 10 min left",  # 1,170 at 2 a second are 585 s
        "calibrating: 71 of 1,211 linears, 10 min left",
        "calibrating: 101 of 1,211 linears, 9 min left",
        "calibrating: 131 of 1,211 linears, 9 min left",
        "calibrating: 211 of 1,211 linears, loss 0.512, 30 min left",
    ]


def test_seconds_that_are_left() -> None:
    clock, lines = Clock(), list[str]()
    with Stages(lines.append, clock=clock).count("writing weights", "layers") as progress:
        progress.begin(30)
        clock.now += 20.0
        progress(10)
    assert lines[1:] == ["writing weights: 10 of 30 layers, 40 s left"]


def test_a_stage_of_nothing_and_a_quiet_one(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with Stages(lines.append).count("calibrating", "linears") as progress:
        progress.begin(0)
    clock = Clock()
    assert lines == []
    with Stages(silent, clock=clock).count("calibrating", "linears") as progress:
        progress.begin(3)
        clock.now += 60.0
        progress()
        progress.tell("a line")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("report", ["report_on_stderr", "silent"])
def test_a_bar_on_a_terminal(report: str) -> None:
    script = (
        "from pad_export.output.stages import Stages; from pad_runtime.command import report_on_stderr, silent\n"
        f"stages = Stages({report})\n"
        "with stages.count('stage 1', 'steps') as progress:\n"
        "    progress.begin(4); progress(2, note='loss 0.512'); progress.tell('held-out loss 0.7'); progress(2)\n"
    )
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    subprocess.run([sys.executable, "-c", script], stderr=follower, stdout=subprocess.DEVNULL, check=True)
    os.close(follower)
    shown = b""
    while not shown.endswith(b"\x04"):
        try:
            shown += os.read(leader, 4096) or b"\x04"
        except OSError:  # the other side is closed, and all is read
            break
    os.close(leader)
    text = shown.decode()
    if report == "silent":
        assert text == ""
        return
    assert "stage 1: 4 steps\r\n" in text
    assert re.search(r"stage 1:\s+0%.*\| 0/4 ", text)
    assert "stage 1: held-out loss 0.7\r\n" in text
    assert "left" not in text

"""The tests of tests/gpu on one device, as a part of the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.process import run_python


def run_tests(device: str, folder: Path, *, timeout: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Counts, names of what failed, and reasons of what was skipped; `error` where there was no end.

    Args:
        device: the one device whose cases are run; it must be there.
        folder: takes pytest's report and log.
        timeout: seconds.
        environment: of the process.
    """
    report = folder / "tests.xml"
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", f"--junitxml={report}"]
    arguments += ["-W", "default"]  # carried packages are of other versions, and warn of other things
    arguments += ["--confcutdir=tests/gpu"]  # the suite's own conftest asks for packages that these tests do not
    ended = run_python(arguments, folder, timeout=timeout, environment={**environment, "PAD_DEVICE": device})
    if ended.timed_out or not report.exists():
        return {"device": device, "error": "budget" if ended.timed_out else ended.error}
    return {"device": device, **read_report(report)}


def read_report(report: Path) -> dict[str, Any]:
    """A JUnit XML file of pytest."""
    passed, failed, skipped = 0, [], Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        problems = [*case.iter("failure"), *case.iter("error")]
        skip = case.find("skipped")
        if problems:
            reason = str(problems[0].get("message", "")).splitlines()[:1]
            failed.append(": ".join([str(case.get("name")), *reason])[:300])
        elif skip is not None:
            skipped[str(skip.get("message"))] += 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": dict(skipped)}

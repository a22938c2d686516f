"""What generating leaves behind, brings back to the host, and imports."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest

from pad_rt import GenerationConfig, Generator
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from tests.support import tiny_bundles
from tests.support.guided_models import PREFERENCES, PROMPTS, Models, config


def test_requests_of_different_sizes_leave_nothing_behind(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    used, opened, real = tiny_bundles.load(models.bundle("base")), list[weakref.ref[Slot]](), Decoder.open
    calls: list[tuple[list[str], str, GenerationConfig]] = [
        ([PROMPTS[0]], "words", config()),
        (list(PROMPTS), "several preferences with scales", config(max_new_tokens=5)),
        ([PROMPTS[0] * 8], "without words", config(max_new_tokens=300)),
        ([PROMPTS[3]], "none", config()),
        ([PROMPTS[3]], "words", config(top_k=1)),
        ([PROMPTS[3]], "official head", config(top_k=30, temperature=2.0)),
        ([PROMPTS[2], PROMPTS[1]], "words", config(beta=-1.0)),
        ([PROMPTS[0]], "words", config()),
    ]

    def note(self: Decoder, *arguments: Any) -> Slot:
        slot = real(self, *arguments)
        opened.append(weakref.ref(slot))
        return slot

    for prompts, name, settings in calls:
        preferences = [PREFERENCES[name][0]] * len(prompts)
        fresh = tiny_bundles.load(models.bundle("base"))
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "open", note)
            ours = used.generate_batch(prompts, preferences=preferences, config=settings)
        theirs = fresh.generate_batch(prompts, preferences=preferences, config=settings)
        assert [result.token_ids for result in ours] == [result.token_ids for result in theirs]
    assert len(opened) >= len(calls)
    assert any(slot() for slot in opened), "some are kept for what may come"
    used.close()
    gc.collect()
    assert [slot() for slot in opened] == [None] * len(opened)
    assert "pad-engine" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("preference", [None, "be kind"])
def test_eight_bytes_a_token_are_reported(generator: Generator, count: int, preference: str | None) -> None:
    results = generator.generate_batch(PROMPTS[:count], preferences=[preference] * count, config=config())
    assert {result.timing.bytes_to_host_per_token for result in results} == {8}


def imported_after(code: str) -> set[str]:
    heavy = ["torch", "transformers", "peft", "onnx", "onnxruntime", "pad_export", "asyncio"]
    code = f"import sys\n{code}\nprint(*[name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(found.stdout.split())


def test_importing_and_generating_load_nothing_heavy(models: Models) -> None:
    assert imported_after("import pad_rt") == set()
    bundle = str(models.bundle("base"))
    assert imported_after(f"import pad_rt; pad_rt.Generator.load({bundle!r}).generate('a', preference='b')") == {
        "onnxruntime"
    }
    assert "onnx" in imported_after("import onnx")  # control

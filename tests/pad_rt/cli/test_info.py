"""`pad info`: what a bundle holds, whether its files are whole, and what can run it here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pad_rt.cli.main import main
from tests.support import fake_cuda
from tests.support.error_checks import error_line


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
    written = json.loads((tiny_bundle / "pad.json").read_text())
    del written["checksum"]
    assert record["manifest"] == written
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
    monkeypatch.setattr("pad_runtime.bundle.held_file._SMALL", 1000)  # as if these weights were large
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

"""With this folder and the one above it on PYTHONPATH, every Python process has a simulated GPU, from its start on."""

from __future__ import annotations

import sys

import fake_cuda
import fake_onnxruntime

RUNTIME = fake_cuda.FakeRuntime(memory=2**28)
sys.modules.update(fake_cuda.make_modules(RUNTIME))
fake_onnxruntime.install(setattr, RUNTIME)

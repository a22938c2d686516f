"""With this folder and the repository on PYTHONPATH, every Python process has a simulated GPU, from its start on."""

from __future__ import annotations

import sys

from tests.support import fake_cuda, fake_onnxruntime

RUNTIME = fake_cuda.FakeRuntime(memory=2**28)
sys.modules.update(fake_cuda.make_modules(RUNTIME))
fake_onnxruntime.install(setattr, RUNTIME)

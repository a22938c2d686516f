"""The TensorRT or TensorRT-RTX library: its Python module, and what it says when something is wrong."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pad_runtime.errors import EngineError

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # target -> Python module


@dataclass(frozen=True)
class Library:
    """The library of this process that runs engines.

    Attributes:
        target: one of `contract.ENGINE_TARGETS`.
        module: its Python module.
        log: what it says.
    """

    target: str
    module: Any
    log: Any

    @classmethod
    def load(cls, target: str) -> Library:
        """Import it. Errors as of `load_tensorrt`."""
        module = load_tensorrt(target)
        return cls(target, module, make_log(module))

    @property
    def is_rtx(self) -> bool:
        """Whether it is the one that compiles kernels as it runs."""
        return self.target == "tensorrt-rtx"

    @property
    def version(self) -> str:
        """Its number."""
        return str(self.module.__version__)

    def __str__(self) -> str:
        """Name and version."""
        return f"{self.target} {self.version}"


def load_tensorrt(target: str) -> Any:
    """The library's Python module.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    module = _MODULES[target]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise EngineError(f"{module} is not installed", hint=f"pip install 'pad-rt[{target}]'") from None
    except (ImportError, OSError) as error:  # the package is there, and one of NVIDIA's libraries is not
        raise EngineError(f"{module} cannot be loaded: {error}", hint=f"pip install 'pad-rt[{target}]' again") from None


def make_log(trt: Any, listen: Callable[[str], None] | None = None) -> Any:
    """A logger for the library that keeps what went wrong; `take` says it once.

    Args:
        trt: the library's module.
        listen: also called with every message that is no error.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                if "cudaError" not in message:  # of a machine with no GPU, where engines can be built all the same
                    self.errors.append(message)
            elif listen is not None:
                listen(message)

        def take(self) -> str:
            errors, self.errors = self.errors, []
            return errors[0] if errors else "it gives no reason"

    return Log()

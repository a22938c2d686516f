"""Torch models written for float32, run in float64 to measure their rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CASTS = (torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax)


class Float64Arithmetic(TorchFunctionMode):
    """While this mode is entered, casts to float32 cast to float64.

    transformers' norms, rotary tables and softmaxes cast to float32 whatever the type of the weights, so that a model
    loaded in float64 would still round to float32.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`; if it casts to float32, let it cast to float64."""
        named = dict(kwargs or {})
        if func in _CASTS:
            func = torch.Tensor.double if func is torch.Tensor.float else func
            args = [torch.float64 if value is torch.float32 else value for value in args]
            named = {key: torch.float64 if value is torch.float32 else value for key, value in named.items()}
        return func(*args, **named)

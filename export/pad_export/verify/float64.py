"""Torch models that were written for float32, run in float64: what their own rounding is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CASTS = (torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax)


class Float64Arithmetic(TorchFunctionMode):
    """While it is entered, what is cast to float32 becomes float64.

    transformers' norms, rotary tables and softmaxes cast to float32 whatever their weights are in, so that a model
    loaded as float64 would still round as one of float32 does.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, a cast to float32 as one to float64."""
        named = dict(kwargs or {})
        if func in _CASTS:
            func = torch.Tensor.double if func is torch.Tensor.float else func
            args = [torch.float64 if value is torch.float32 else value for value in args]
            named = {key: torch.float64 if value is torch.float32 else value for key, value in named.items()}
        return func(*args, **named)

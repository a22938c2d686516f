"""Replies to the rows of a data set, for Ray Data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pad_rt.api.guidance import Guidance
from pad_rt.config import ConfigLike, make_config
from pad_rt.generator import Generator


class PadPredictor:
    """A generator in each worker of `ray.data.Dataset.map_batches`.

        dataset.map_batches(PadPredictor, fn_constructor_kwargs={"bundle": "/models/a"}, batch_size=64, concurrency=4)

    Rows have a column `prompt`: a text, or messages. They may have a column `pad`, an object as in the server's API,
    whose fields go before the constructor's. Columns `reply`, `finish_reason` and `completion_tokens` are added.

    Args:
        bundle: a folder, at the same path on each machine, or OWNER/NAME on the hub.
        pad: guidance of rows that have none: an object such as {"weights": {"cheerful": 1.0}}.
        config: as of `Generator.generate`; each row has the same seed.
        device, threads: as of `Generator.load`.

    Raises:
        PadError: the bundle cannot be opened, or, when rows come, one of them asks for what is not there.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        pad: Mapping[str, Any] | None = None,
        config: ConfigLike = None,
        device: str = "auto",
        threads: int | None = 1,
    ) -> None:
        self._guidance = Guidance.read(pad or {})
        self._config = make_config(config)
        self._generator = Generator.load(bundle, device=device, num_threads=threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, by column, with replies. Its rows run side by side."""
        prompts = [_as_json(prompt) for prompt in batch["prompt"]]
        given = [_as_json(pad) or {} for pad in batch.get("pad", [{}] * len(prompts))]
        guidances = [Guidance.read(pad).over(self._guidance) for pad in given]
        results = self._generator.generate_batch(
            prompts,
            preferences=[guidance.wish() for guidance in guidances],
            configs=[replace(self._config, **guidance.options) for guidance in guidances],
        )
        return {
            **batch,
            "reply": np.array([result.text for result in results], dtype=object),
            "finish_reason": np.array([result.finish_reason for result in results], dtype=object),
            "completion_tokens": np.array([result.usage.completion_tokens for result in results]),
        }


def _as_json(value: Any) -> Any:
    """A cell as JSON has it. In a table, each row has every row's fields, and None for those that it did not have."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, Mapping):
        return {name: _as_json(each) for name, each in value.items() if each is not None}
    return value.item() if isinstance(value, np.generic) else value

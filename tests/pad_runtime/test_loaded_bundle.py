"""A bundle that several threads share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pad_runtime.bundle import contract
from tests.support import tiny_bundles


def test_a_graph_is_opened_once_whoever_asks_first(tiny_bundle: Path) -> None:
    bundle = tiny_bundles.open_bundle(tiny_bundle)
    opened, all_ask = [], threading.Barrier(3)

    class Slow:
        """A provider in which a second thread would overtake the first one."""

        def open(self, *arguments: Any) -> Any:
            opened.append(arguments)
            threading.Event().wait(0.1)
            return provider.open(*arguments)

    provider, bundle.provider = bundle.provider, Slow()  # type: ignore[assignment]

    def ask() -> Any:
        all_ask.wait()
        return bundle.graph(contract.BASE_GRAPH)

    with ThreadPoolExecutor(3) as pool:
        graphs = [future.result() for future in [pool.submit(ask) for _ in range(3)]]
    assert len(opened) == len(set(map(id, graphs))) == 1

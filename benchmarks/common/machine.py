"""The machine that a record is of."""

from __future__ import annotations

import platform
from typing import Any

from pad_rt.bench.machine import cpu_name, num_cores


def describe_machine() -> dict[str, Any]:
    """Processor, logical cores that this process may run on, system."""
    return {"cpu": cpu_name(), "cores": num_cores(), "system": platform.platform()}

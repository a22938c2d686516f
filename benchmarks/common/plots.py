"""How plots look: PNG, in colours that colour-blind readers can tell apart (Okabe and Ito 2008)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, GREY = "#D55E00", "#CC79A7", "#666666"
_FONT: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11}


def save(figures: Mapping[str, Callable[[], Figure]], folder: Path) -> list[Path]:
    """Draw every figure and write it under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    with mpl.rc_context(_FONT):
        for path, draw in zip(paths, figures.values(), strict=True):
            draw().savefig(path, dpi=150)
    return paths

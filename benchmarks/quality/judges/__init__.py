"""Two judges a feature: what reads the replies of the benchmark, and shares no text or word list with the scorers."""

from benchmarks.quality.judges.all import load_judges
from benchmarks.quality.judges.judge import Judge

__all__ = ["Judge", "load_judges"]

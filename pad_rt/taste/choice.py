"""A choice between two replies, wherever it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pad_rt.taste.taste import Taste
from pad_rt.text.prompt import Prompt

Kind = Literal["preferred", "edited", "regenerated", "rated"]


@dataclass(frozen=True)
class Choice:
    """One choice.

    Attributes:
        kind: how it was made.
        prompt: what the replies reply to.
        better, worse: texts; of a rated reply, None stands for what the base alone would have replied.
        ended: whether both replies are whole; of a rated one, it is taken for whole.
    """

    kind: Kind
    prompt: Prompt
    better: str | None
    worse: str | None
    ended: bool = True

    def teach(self, taste: Taste) -> bool:
        """Let a taste learn from it; False where it tells nothing.

        Raises:
            PromptError, OutOfMemoryError, DeviceError, BundleError: as `Taste.prefer`.
        """
        if self.better is not None and self.worse is not None:
            return taste.prefer(self.prompt, self.better, self.worse, ended=self.ended)
        if self.better is not None:
            return taste.rate(self.prompt, self.better, 1)
        return self.worse is not None and taste.rate(self.prompt, self.worse, -1)

"""What says which tokens a reply may go on with."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class AllowedTokens(Protocol):
    """Which tokens one reply may go on with."""

    def packed(self) -> npt.NDArray[np.uint8] | None:
        """Bits of the next token, [ceil(V / 8)] uint8, least significant first; None: all may come.

        Raises:
            OptionError: no reply of the kind that was asked for goes on like this.
        """
        ...

    def push(self, token_id: int) -> None:
        """A token was chosen."""
        ...

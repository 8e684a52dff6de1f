"""A page store for engines that compute nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class NoPages:
    """A page store that stores nothing."""

    def commit(self, group: str, slabs: Sequence[int]) -> None:
        """Nothing."""

    decommit = commit

    def copy_out(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """Nothing."""

    copy_in = move = copy_out

"""Chain: the keys of one growing sequence, each computed once.

segment i:                H(key of segment i - 1, its 1,024 tokens); before the first is the root
checkpoint at n pages:    H(key of the last whole segment, the tokens after it)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from kvfold.runtime.memory.tiers.layout import KEY_BYTES, SEGMENT_PAGES, digest


def token_bytes(tokens: np.ndarray, start: int, end: int) -> bytes:
    """Tokens as they are hashed and stored: int32, little-endian."""
    return tokens[start:end].astype("<i4").tobytes()


class Chain:
    """Keys along a sequence of one tenant. Not for two threads at once.

    Law: the tokens that were given once stay what they are; where they change, a new chain is made.

    Attributes:
        root: the tenant's root.
    """

    def __init__(self, root: bytes, page_size: int) -> None:
        """A chain of no tokens."""
        self.root = root
        self._page_size = page_size
        self._keys = [root]

    def keys(self, tokens: np.ndarray, segments: int) -> list[bytes]:
        """The root and the keys of the first `segments` segments."""
        span = SEGMENT_PAGES * self._page_size
        for number in range(len(self._keys) - 1, segments):
            piece = token_bytes(tokens, number * span, (number + 1) * span)
            self._keys.append(digest(b"segment", self._keys[-1], piece))
        return self._keys[: segments + 1]

    def end_key(self, tokens: np.ndarray, pages: int) -> bytes:
        """Key of the checkpoint at a length."""
        segment, rest = divmod(pages, SEGMENT_PAGES)
        ((_, key),) = self.end_keys(tokens, segment, 1 << rest)
        return key

    def end_keys(self, tokens: np.ndarray, segment: int, mask: int) -> Iterator[tuple[int, bytes]]:
        """Lengths in pages and keys of checkpoints after `segment` whole segments, growing.

        Args:
            tokens: of the sequence.
            segment: how many whole segments come before.
            mask: bit r is set where r pages after them are asked for.
        """
        first = segment * SEGMENT_PAGES
        hashed = hashlib.sha256(b"checkpoint" + self.keys(tokens, segment)[-1])
        start = first
        for rest in range(mask.bit_length()):
            if mask >> rest & 1:
                end = first + rest
                hashed.update(token_bytes(tokens, start * self._page_size, end * self._page_size))
                start = end
                yield end, hashed.copy().digest()[:KEY_BYTES]

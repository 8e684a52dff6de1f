"""Kernel: a step's ids that stand for tokens of the last drawing become those tokens.

The host names a token by its place before it knows it: id -1 - i is that of row i. A row that has no token,
as its logits were not finite, gives 0: its reply ends, and nobody reads what the step makes of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

GRID = ("id_blocks", "one", "one")


@triton.jit  # type: ignore[untyped-decorator]
def feed(
    input_ids: tl.tensor,  # int64 [ids]
    tokens: tl.tensor,  # int32 [rows], of the last drawing
    ids: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK ids."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    named = tl.load(input_ids + places, mask=places < ids, other=0)
    drawn = named < 0
    found = tl.load(tokens + (-1 - named), mask=drawn, other=0)
    tl.store(input_ids + places, tl.maximum(found, 0).to(tl.int64), mask=drawn)

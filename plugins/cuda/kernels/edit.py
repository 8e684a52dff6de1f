"""Kernels: rows of logits under mask, bias, penalties and bans, beside the rows themselves.

First `edit` copies each row that is edited, and masks it; then `penalize` changes the tokens that it names.
A row's entries name a token once, so that no two threads meet; a ban is a bias of -inf. Every operation is
the reference's, in its order.
"""

from __future__ import annotations

import triton
import triton.language as tl

GRID = ("rows", "vocab_blocks", "one")


@triton.jit  # type: ignore[untyped-decorator]
def edit(
    logits: tl.tensor,  # float32 [any, vocab]
    edited: tl.tensor,  # float32 [rows, vocab]
    masks: tl.tensor,  # uint32 [masks, cdiv(vocab, 32)]
    sources: tl.tensor,  # int32 [rows], each one's row of logits
    is_edited: tl.tensor,  # int32 [rows]
    mask_of: tl.tensor,  # int32 [rows], -1: all are allowed
    vocab: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK logits of one row."""
    row = tl.program_id(0)
    if tl.load(is_edited + row) == 0:
        return
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = places < vocab
    x = tl.load(logits + tl.load(sources + row).to(tl.int64) * vocab + places, mask=inside, other=0.0)
    mask = tl.load(mask_of + row)
    if mask >= 0:
        words = masks + mask.to(tl.int64) * tl.cdiv(vocab, 32) + places // 32
        bits = tl.load(words, mask=inside, other=0) >> (places % 32).to(tl.uint32)
        x = tl.where((bits & 1) != 0, x, float("-inf"))
    tl.store(edited + row.to(tl.int64) * vocab + places, x, mask=inside)

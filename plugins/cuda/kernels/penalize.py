"""Kernel: bias, penalties and bans of the tokens that a row names, in its copy that `edit` made."""

from __future__ import annotations

import triton
import triton.language as tl

GRID = ("rows", "one", "one")


@triton.jit  # type: ignore[untyped-decorator]
def penalize(
    edited: tl.tensor,  # float32 [rows, vocab]
    entry_begin: tl.tensor,  # int32 [rows], entries of each row
    entry_end: tl.tensor,
    entry_ids: tl.tensor,  # int32 [entries]
    entry_biases: tl.tensor,  # float32 [entries], -inf: banned
    entry_counts: tl.tensor,  # int32 [entries], in the reply; -1: neither there nor in the prompt
    repetition_penalty: tl.tensor,  # float32 [rows]
    frequency_penalty: tl.tensor,
    presence_penalty: tl.tensor,
    vocab: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One row."""
    row = tl.program_id(0)
    end = tl.load(entry_end + row)
    repetition = tl.load(repetition_penalty + row)
    frequency = tl.load(frequency_penalty + row)
    presence = tl.load(presence_penalty + row)
    for start in range(tl.load(entry_begin + row), end, BLOCK):
        entries = start + tl.arange(0, BLOCK)
        inside = entries < end
        places = edited + row.to(tl.int64) * vocab + tl.load(entry_ids + entries, mask=inside, other=0)
        x = tl.load(places, mask=inside, other=0.0)
        x += tl.load(entry_biases + entries, mask=inside, other=0.0)
        count = tl.load(entry_counts + entries, mask=inside, other=-1)
        seen = tl.where(x > 0, tl.div_rn(x, repetition + tl.zeros_like(x)), x * repetition)
        seen -= frequency * count.to(tl.float32)
        seen -= presence * (count > 0).to(tl.float32)
        tl.store(places, tl.where(count >= 0, seen, x), mask=inside)

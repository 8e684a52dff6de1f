"""Kernel: put the splits of `decode` together and add the learned sink to the denominator."""

from __future__ import annotations

import triton
import triton.language as tl

from kvfold.plugins.cuda.kernels.numerics import LOG2_E

GRID = ("sequences", "num_heads", "one")
BLOCK: tl.constexpr = tl.constexpr(16)  # splits loaded at once


@triton.jit  # type: ignore[untyped-decorator]
def merge(
    partial_max: tl.tensor,  # float32 [B, num_heads, splits], base 2
    partial_sum: tl.tensor,
    partial_output: tl.tensor,  # float32 [B, num_heads, splits, HEAD_SIZE]
    head_sink: tl.tensor,  # float32 [num_heads]
    output: tl.tensor,  # activation [B, num_heads, HEAD_SIZE]
    num_heads: tl.tensor,
    splits: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    HEAD_SINK: tl.constexpr,
) -> None:
    """One query head of one sequence. `splits` is that of `decode`, counted from decode's constants."""
    WIDTH: tl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    head = tl.program_id(0).to(tl.int64) * num_heads + tl.program_id(1)
    channels = tl.arange(0, WIDTH)
    is_channel = channels < HEAD_SIZE
    if HEAD_SINK:  # a key with this logit and the value 0
        running_max = tl.load(head_sink + tl.program_id(1)) * LOG2_E
        running_sum = tl.full((), 1.0, tl.float32)
    else:
        running_max = tl.full((), float("-inf"), tl.float32)
        running_sum = tl.full((), 0.0, tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, splits, BLOCK):
        i = start + tl.arange(0, BLOCK)
        partials = head * splits + i
        maxima = tl.load(partial_max + partials, mask=i < splits, other=float("-inf"))
        saw_keys = maxima > float("-inf")  # the output of others was never written
        sums = tl.load(partial_sum + partials, mask=saw_keys, other=0.0)
        inside = saw_keys[:, None] & is_channel[None, :]
        totals = tl.load(
            partial_output + partials[:, None] * HEAD_SIZE + channels[None, :], mask=inside, other=0.0
        )  # [BLOCK, WIDTH]
        new_max = tl.maximum(running_max, tl.max(maxima, 0))
        base = tl.where(new_max == float("-inf"), 0.0, new_max)
        shrink = tl.exp2(running_max - base)
        weights = tl.exp2(maxima - base)
        running_max = new_max
        running_sum = running_sum * shrink + tl.sum(weights * sums, 0)
        total = total * shrink + tl.sum(weights[:, None] * totals, 0)
    result = total / tl.where(running_sum > 0.0, running_sum, 1.0)  # zeros where no key was seen
    tl.store(output + head * HEAD_SIZE + channels, result.to(output.dtype.element_ty), mask=is_channel)

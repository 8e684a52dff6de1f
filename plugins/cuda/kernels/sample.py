"""Kernel: a row of logits becomes a token, and what is told of likelihoods.

A row is read several times, BLOCK logits at a time, by one program. Logits are in the order of int32 keys;
a weight is a whole number of 2^-40 of the largest one. Sums of those are exact, in whichever order, and have
room for 2^22 tokens.

A set of likeliest tokens is a *border*: all tokens of larger keys, and of its own key those up to a place.
"""

from __future__ import annotations

import triton
import triton.language as tl

GRID = ("rows", "one", "one")
SAMPLED: tl.constexpr = tl.constexpr(0)
NOT_FINITE: tl.constexpr = tl.constexpr(1)
NOTHING_ALLOWED: tl.constexpr = tl.constexpr(2)
UNIT: tl.constexpr = tl.constexpr(2.0**40)
LEAST_KEY: tl.constexpr = tl.constexpr(-(1 << 31))
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# ln 2 in two parts: multiples of the first up to 2^8 are exact.
LN2_HIGH: tl.constexpr = tl.constexpr(0.693359375)
LN2_LOW: tl.constexpr = tl.constexpr(-2.12194440e-4)


@triton.jit  # type: ignore[untyped-decorator]
def sample(
    logits: tl.tensor,  # float32 [any, vocab]
    edited: tl.tensor,  # float32 [rows, vocab], of rows that are edited
    sources: tl.tensor,  # int32 [rows], each one's row of logits
    is_edited: tl.tensor,  # int32 [rows]
    temperature: tl.tensor,  # float32 [rows]
    min_p: tl.tensor,
    top_k: tl.tensor,  # int32 [rows]
    likely: tl.tensor,  # int32 [rows], -1: nothing is told
    top_p: tl.tensor,  # float64 [rows]
    draw: tl.tensor,
    tokens: tl.tensor,  # int32 [rows]
    status: tl.tensor,
    logprobs: tl.tensor,  # float64 [rows]
    likely_ids: tl.tensor,  # int32 [rows, likely_width]
    likely_logprobs: tl.tensor,  # float64 [rows, likely_width]
    likely_width: tl.tensor,
    vocab: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One row, as `plugins.sampling.schema` says."""
    row = tl.program_id(0)
    source = logits + tl.load(sources + row).to(tl.int64) * vocab
    peak, token, state = survey(source, vocab, BLOCK)
    x = source
    top = peak
    if (state == SAMPLED) & (tl.load(is_edited + row) != 0):
        x = edited + row.to(tl.int64) * vocab
        top, token, state = survey(x, vocab, BLOCK)
        state = tl.where(top == float("-inf"), NOTHING_ALLOWED, state)
    tl.store(status + row, state)
    tl.store(tokens + row, -1)
    if state != SAMPLED:
        return
    heat = tl.load(temperature + row)
    if heat > 0:
        kept, share = tl.load(top_k + row), tl.load(top_p + row)
        token = draw_token(x, vocab, top, heat, kept, share, tl.load(min_p + row), tl.load(draw + row), BLOCK)
    tl.store(tokens + row, token)
    count = tl.load(likely + row)
    if count >= 0:
        place = row.to(tl.int64) * likely_width
        offset = log_sum(source, vocab, peak, BLOCK) + peak.to(tl.float64)
        tl.store(logprobs + row, tl.load(source + token).to(tl.float64) - offset)
        tell_likeliest(source, vocab, offset, count, likely_ids + place, likely_logprobs + place, BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def survey(x: tl.tensor, vocab: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The largest of a row, the first place of it, and NOT_FINITE where that or a NaN says so."""
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    broken = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(x + places, mask=places < vocab, other=float("-inf"))
        broken = broken | (values != values).to(tl.int32)
        better = values > best
        best = tl.where(better, values, best)
        place = tl.where(better, places, place)
    peak = tl.max(best, 0)
    first = tl.min(tl.where(best == peak, place, vocab), 0)
    infinite = (peak == float("inf")) | (peak == float("-inf"))
    state = tl.where(infinite | (tl.max(broken, 0) != 0), NOT_FINITE, SAMPLED)
    return peak, first, state


@triton.jit  # type: ignore[untyped-decorator]
def draw_token(
    x: tl.tensor,
    vocab: tl.tensor,
    peak: tl.tensor,
    heat: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    draw: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The token that a draw falls on: the last of three borders, each inside of the one before.

    They are top_k's, where tokens are counted; top_p's share of the mass; the draw's of what min_p leaves.
    """
    key = tl.full((), LEAST_KEY, tl.int32)
    last = vocab
    for phase in range(0, 3):
        if ((phase == 0) & (top_k > 0) & (top_k < vocab)) | ((phase == 1) & (top_p < 1)) | (phase == 2):
            counted = phase == 0
            least = tl.where(phase == 2, min_p, 0.0)
            total = measure(x, vocab, peak, heat, least, key, last, LEAST_KEY, counted, BLOCK)
            share = tl.where(phase == 1, top_p, draw) * total.to(tl.float64)
            wanted = share.to(tl.int64)  # rounded up by top_p, passed by the draw
            wanted += ((phase == 2) | (wanted.to(tl.float64) < share)).to(tl.int64)
            wanted = tl.minimum(tl.maximum(wanted, 1), total)
            wanted = tl.where(counted, top_k.to(tl.int64), wanted)
            ordered = (phase < 2) | (top_p < 1)  # by likelihood, else by id
            found = tl.full((), LEAST_KEY, tl.int32)
            if ordered:
                found = find_key(x, vocab, peak, heat, least, key, last, wanted, counted, BLOCK)
                wanted -= measure(x, vocab, peak, heat, least, key, last, found + 1, counted, BLOCK)
            last = walk(x, vocab, peak, heat, least, key, last, found, wanted, counted, ordered, BLOCK)
            key = found
    return last


@triton.jit  # type: ignore[untyped-decorator]
def find_key(
    x: tl.tensor,
    vocab: tl.tensor,
    peak: tl.tensor,
    heat: tl.tensor,
    least: tl.tensor,
    key: tl.tensor,
    last: tl.tensor,
    wanted: tl.tensor,
    counted: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The key at which the likeliest tokens inside of a border reach a number, or a mass."""
    found = tl.full((), LEAST_KEY, tl.int32)
    step = tl.full((), 1 << 30, tl.int32)
    for _ in range(0, 16):  # two bits of the key at a time
        low = found + step
        middle = low + step
        high = middle + step
        first = tl.zeros((BLOCK,), tl.int64)
        second = tl.zeros((BLOCK,), tl.int64)
        third = tl.zeros((BLOCK,), tl.int64)
        for start in range(0, vocab, BLOCK):
            keys, amounts = load_block(x, vocab, start, peak, heat, least, key, last, counted, BLOCK)
            first += tl.where(keys >= low, amounts, 0)
            second += tl.where(keys >= middle, amounts, 0)
            third += tl.where(keys >= high, amounts, 0)
        found = tl.where(tl.sum(first, 0) >= wanted, low, found)
        found = tl.where(tl.sum(second, 0) >= wanted, middle, found)
        found = tl.where(tl.sum(third, 0) >= wanted, high, found)
        step >>= 2
    return found


@triton.jit  # type: ignore[untyped-decorator]
def walk(
    x: tl.tensor,
    vocab: tl.tensor,
    peak: tl.tensor,
    heat: tl.tensor,
    least: tl.tensor,
    key: tl.tensor,
    last: tl.tensor,
    found: tl.tensor,
    wanted: tl.tensor,
    counted: tl.tensor,
    ordered: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The place, by id, at which tokens of the key `found`, or all, reach a number, or a mass."""
    place = tl.full((), 0, tl.int32)
    passed = tl.full((), 0, tl.int64)
    for start in range(0, vocab, BLOCK):
        keys, amounts = load_block(x, vocab, start, peak, heat, least, key, last, counted, BLOCK)
        amounts = tl.where((keys == found) | (ordered == 0), amounts, 0)
        block = tl.sum(amounts, 0)
        if (passed < wanted) & (passed + block >= wanted):
            reached = tl.cumsum(amounts, 0) >= wanted - passed
            place = start + tl.min(tl.where(reached, tl.arange(0, BLOCK), BLOCK), 0)
        passed += block
    return place


@triton.jit  # type: ignore[untyped-decorator]
def measure(
    x: tl.tensor,
    vocab: tl.tensor,
    peak: tl.tensor,
    heat: tl.tensor,
    least: tl.tensor,
    key: tl.tensor,
    last: tl.tensor,
    from_key: tl.tensor,
    counted: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """How many tokens there are inside of a border from a key on, or their mass."""
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, vocab, BLOCK):
        keys, amounts = load_block(x, vocab, start, peak, heat, least, key, last, counted, BLOCK)
        total += tl.where(keys >= from_key, amounts, 0)
    return tl.sum(total, 0)


@triton.jit  # type: ignore[untyped-decorator]
def load_block(
    x: tl.tensor,
    vocab: tl.tensor,
    start: tl.tensor,
    peak: tl.tensor,
    heat: tl.tensor,
    least: tl.tensor,
    key: tl.tensor,
    last: tl.tensor,
    counted: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Keys of a block, and what each token adds: 1 or its mass, 0 outside of the border or below a weight."""
    places = start + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < vocab, other=float("-inf"))
    keys = keys_of(values)
    inside = (places < vocab) & ((keys > key) | ((keys == key) & (places <= last)))
    weights = weigh(values, peak, heat)
    masses = (weights * UNIT).to(tl.int64)
    return keys, tl.where(inside & (weights >= least), tl.where(counted, 1, masses), 0)


@triton.jit  # type: ignore[untyped-decorator]
def keys_of(values: tl.tensor) -> tl.tensor:
    """Int32 that grow as floats grow; -0 has that of 0."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit  # type: ignore[untyped-decorator]
def weigh(values: tl.tensor, peak: tl.tensor, heat: tl.tensor) -> tl.tensor:
    """exp((values - peak) / heat) to 3e-7 of itself, never less than exp(-87)."""
    z = tl.maximum(tl.div_rn(values - peak, heat + tl.zeros_like(values)), -87.0)
    whole = tl.floor(z * LOG2_E + 0.5)
    rest = (z - whole * LN2_HIGH) - whole * LN2_LOW
    power = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.exp2(rest * LOG2_E) * power


@triton.jit  # type: ignore[untyped-decorator]
def log_sum(x: tl.tensor, vocab: tl.tensor, peak: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Natural logarithm of the sum of exp(x - peak), float64."""
    mass = measure(x, vocab, peak, 1.0, 0.0, LEAST_KEY, vocab, LEAST_KEY, False, BLOCK)
    return tl.log(mass.to(tl.float64) / UNIT)


@triton.jit  # type: ignore[untyped-decorator]
def tell_likeliest(
    x: tl.tensor,
    vocab: tl.tensor,
    offset: tl.tensor,
    count: tl.tensor,
    ids: tl.tensor,
    values: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The `count` likeliest tokens, one after the other: x - offset is the log probability of each."""
    key = tl.full((), 0x7FFFFFFF, tl.int32)
    place = tl.full((), -1, tl.int32)
    for rank in range(0, count):
        best = tl.full((BLOCK,), LEAST_KEY, tl.int32)
        at = tl.full((BLOCK,), vocab, tl.int32)
        for start in range(0, vocab, BLOCK):
            places = start + tl.arange(0, BLOCK)
            keys = keys_of(tl.load(x + places, mask=places < vocab, other=float("-inf")))
            follows = (places < vocab) & ((keys < key) | ((keys == key) & (places > place)))
            better = follows & (keys > best)
            best = tl.where(better, keys, best)
            at = tl.where(better, places, at)
        key = tl.max(best, 0)
        place = tl.min(tl.where(best == key, at, vocab), 0)
        tl.store(ids + rank, place)
        tl.store(values + rank, tl.load(x + place).to(tl.float64) - offset)

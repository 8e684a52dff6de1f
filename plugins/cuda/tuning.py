"""Tile sizes, warps and pipeline stages per kernel and architecture: what was measured, else a rule.

`kvfold tune` measures on a card and writes a table (`tuned_table.py`). The rule was not timed. It follows
from arithmetic intensity, from what an SM holds and from what the compiler made: instructions of a loop,
registers, spills, and where loads are waited for. docs/gpu-kernels.md has these figures.

Stages: Triton issues the loads of a loop after its computation. So with two stages a block is waited for
right after it was asked for, and only from three on a block computes while the next two are loaded. This
needs the ids of pages one block earlier, so the kernels carry them from block to block.

Decoding moves bytes. One new token with G query heads per KV head reads 2 * d bytes of an int8 cache per key
and computes 6 * G * d operations on it (two int8 planes of q.k, one p.v): 3 * G operations a byte, 27 for
nine heads. An A100 balances at 624 int8 TOPS / 2 TB/s = 312, an RTX 4090 at 660 / 1 = 660. So tiles are as
small as tensor cores allow (16 rows), and what counts is bytes in flight, and few instructions for each. Two
warps on 64 keys of 64 channels take 336 issue slots of an SM's four schedulers for 8 KB of K and V on SM 90,
four warps 533. A split of 256 keys makes 32 blocks of one sequence of 8,192 tokens and one KV head; its
partial result (4 * G * d bytes) is 7 % of the K and V bytes that it stands for at nine heads.

Prefill computes. A tile of R rows (query tokens times heads) does 4 * R * d operations on the 2 * d bytes of
an int8 key: 2 * R a byte. 128 rows are beyond an A100's float16 balance of 156, before L2 helps, where
neighbouring tiles find the same pages. What limits R are registers: the accumulator and the logits of a tile
must stay in a thread's 255. With 8 warps 128 rows by 64 keys spill nothing at d = 64, and up to d = 128
where the accumulator lives elsewhere (SM 90 and 100); 64 by 32 in 4 warps spill nothing from SM 80 on. That
was looked at for up to 16 query heads per KV head; larger groups compile, but may spill.

SM 75: Triton has no tensor-core path for it, so its dot products are multiply-adds in float16, with operands
in registers: small tiles, 8 warps, and no pipeline, as it has no asynchronous copies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import Variant
from kvfold.plugins.cuda.sampling_launches import EDIT_BLOCK, FEED_BLOCK
from kvfold.plugins.cuda.tuned_table import TunedTable, Way, table_path, tuned_table

# What `kvfold tune` tries, besides warps and stages.
PREFILL_DIALS = {"ROWS": (64, 128, 256), "KEYS": (32, 64, 128)}
DECODE_DIALS = {"SPLIT_KEYS": (256, 512, 1024), "KEYS": (32, 64, 128)}
# Most shared memory of one block, bytes (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {
    75: 65_536,
    80: 166_912,
    86: 101_376,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    120: 101_376,
    121: 101_376,
}

# One program reads a whole row of logits, so it has as many threads as let it keep a block in registers.
SAMPLING_BLOCKS = {"edit": EDIT_BLOCK, "penalize": 256, "sample": 2048, "feed": FEED_BLOCK}
SAMPLING_WARPS = {"edit": 4, "penalize": 4, "sample": 16, "feed": 4}


@dataclass(frozen=True)
class Tuning:
    """How one variant is compiled.

    Attributes:
        num_warps: of a block.
        num_stages: of the software pipeline over keys.
        constants: tile sizes, by the names of the kernel's constexpr parameters.
    """

    num_warps: int
    num_stages: int
    constants: dict[str, int] = field(default_factory=dict)


def tunings_of(variant: Variant, architecture: int) -> tuple[Tuning, ...]:
    """The choices for one variant on one architecture, the best first: what was measured, then the rule.

    A choice was measured with another group and other options, so it may not fit where the rule does.

    Raises:
        KernelError: the architecture's table cannot be read, or says that the rule broke the GPU.
    """
    rule = rule_of(variant, architecture)
    table = tuned_table(architecture)
    if table is None or variant.kernel not in ("prefill", "decode"):
        return (rule,)
    choice = table.find(variant.kernel, variant.cache_dtype == "int8", _width(variant))
    if choice is None:
        _check_not_broken(rule, variant, table)
        return (rule,)
    return _with_room(tuning_of(choice), variant), rule


def tuning_of(way: Way) -> Tuning:
    """What a table says of a way."""
    return Tuning(way.num_warps, way.num_stages, way.constants)


def _check_not_broken(rule: Tuning, variant: Variant, table: TunedTable) -> None:
    """Raise KernelError where the rule broke the GPU: nothing was held against it, so no way is known."""
    serves = variant.kernel, variant.cache_dtype == "int8", _width(variant)
    for way in table.broken:
        if way.serves == serves and tuning_of(way) == rule:
            raise KernelError(
                f"{variant.kernel} with {variant.cache_dtype} caches and heads of {_width(variant)} channels "
                f"broke the GPU when {table.card} was tuned ({way.error}); run `kvfold tune` again with "
                f"another driver or Triton ({table.triton} was used); to build all the same, remove "
                f"{table_path(table.architecture)}"
            )


def rule_of(variant: Variant, architecture: int) -> Tuning:
    """The choice where nothing was measured."""
    if variant.kernel in SAMPLING_BLOCKS:
        return Tuning(SAMPLING_WARPS[variant.kernel], 1, {"BLOCK": SAMPLING_BLOCKS[variant.kernel]})
    if variant.kernel in ("append", "merge"):  # one head of one token: a few hundred bytes
        return Tuning(num_warps=1, num_stages=1)
    if variant.kernel == "decode":
        return _decode(_width(variant), architecture)
    return _with_room(_prefill(dict(variant.constants)["HEAD_SIZE"], architecture), variant)


def candidates_of(variant: Variant, architecture: int) -> list[Tuning]:
    """The rule for prefill or decode, then what may be faster; those most like the rule come first.

    Some do not fit an SM, or spill; that a compiler says.
    """
    rule = rule_of(variant, architecture)
    dials = PREFILL_DIALS if variant.kernel == "prefill" else DECODE_DIALS
    found = [
        _with_room(Tuning(warps, stages, rule.constants | dict(zip(dials, sizes, strict=True))), variant)
        for warps in (2, 4, 8)
        for stages in ((1,) if architecture == 75 else (2, 3, 4))
        for sizes in product(*dials.values())
    ]

    def differences(tuning: Tuning) -> int:
        pairs = [(tuning.num_warps, rule.num_warps), (tuning.num_stages, rule.num_stages)]
        pairs += [(tuning.constants[name], rule.constants[name]) for name in dials]
        return sum(one != other for one, other in pairs)

    return [rule, *sorted((tuning for tuning in found if tuning != rule), key=differences)]


def _width(variant: Variant) -> int:
    return _power_of_two(dict(variant.constants)["HEAD_SIZE"])


def _with_room(tuning: Tuning, variant: Variant) -> Tuning:
    """The same with a row for each query head of a KV head."""
    rows = tuning.constants.get("ROWS")
    if rows is None:
        return tuning
    rows = max(rows, _power_of_two(dict(variant.constants)["GROUP_SIZE"]))
    return replace(tuning, constants=tuning.constants | {"ROWS": rows})


def _decode(width: int, architecture: int) -> Tuning:
    if architecture == 75:
        # Triton lowers no int8 dot product for SM 75: q.k of an int8 cache is computed in float16 there.
        keys = 32 if width <= 64 else 16
        return Tuning(8, 1, {"SPLIT_KEYS": 256, "KEYS": keys, "INT8_DOT": 0})
    keys = 32 if width > 128 else 64
    return Tuning(2 if width <= 64 else 4, 3, {"SPLIT_KEYS": 256, "KEYS": keys, "INT8_DOT": 1})


def _prefill(head_size: int, architecture: int) -> Tuning:
    width = _power_of_two(head_size)
    if architecture == 75:
        warps, stages, rows, keys = 8, 1, *((32, 32) if width <= 128 else (16, 16))
        if head_size % 16:  # an int8 head then comes in pieces of 8 bytes, and 32 of them spill
            keys = 16
    elif width <= 64 or (width <= 128 and architecture in (90, 100)):
        warps, stages, rows, keys = 8, 3, 128, 64
    elif width <= 128:
        warps, stages, rows, keys = 4, 3, 64, 32
    else:
        warps, stages, rows, keys = 8, 2, 64, 32
    return Tuning(warps, stages, {"ROWS": rows, "KEYS": keys})


def _power_of_two(value: int) -> int:
    """The least power of two that is not below: Triton's blocks have no other size."""
    return 1 << (value - 1).bit_length()

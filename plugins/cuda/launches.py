"""What one call of the attention op launches: kernels, grids and arguments, from shapes alone.

Buffers and numbers go by name. A kernel's parameters carry these names, `kernels.json` lists them in
order, and whoever launches (Python, C++, the tests under Triton's interpreter) resolves them. Lengths of
sequences live on the device: grids are upper bounds, and a block that has nothing to do returns at once.

Numbers (int32 unless said otherwise):
    tokens, sequences, table_width      T, B and M of this call
    num_heads, kv_num_heads             of the node
    query_stride, kv_stride             elements from one token to the next in query, and in key and value
    window, sinks                       of the node; window -1 is off
    splits                              splits of `split_keys` keys that decoding runs for each sequence
    scale, softcap, epsilon             float32
    query_tiles                         grid only: tiles of at most tokens_per_tile tokens of one sequence
    one                                 grid only
Buffers: the op's inputs and `output` by their schema names, and those of WORKSPACE. Packed QKV arrives as
`query`; `key` and `value` are then addresses inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvfold.plugins.cuda.attention_spec import AttentionSpec, KernelName

# Scratch buffers, each aligned to WORKSPACE_ALIGNMENT bytes, in this order.
WORKSPACE = (
    "rotated_query",  # activation [T, num_heads, head_size]: normalised and rotated
    "partial_max",  # float32 [B, num_heads, splits]: of each split's base-2 logits, -inf where it saw nothing
    "partial_sum",  # float32 [B, num_heads, splits]
    "partial_output",  # float32 [B, num_heads, splits, head_size]: not divided by the sum
)
WORKSPACE_ALIGNMENT = 256
FLOATS = ("scale", "softcap", "epsilon")
INTEGERS = (
    *("tokens", "sequences", "table_width", "num_heads", "kv_num_heads", "query_stride", "kv_stride"),
    *("window", "sinks", "splits"),
)


@dataclass(frozen=True)
class Shapes:
    """Sizes of one call.

    Attributes:
        tokens: T, new tokens of all sequences.
        sequences: B.
        table_width: M, columns of the block table.
    """

    tokens: int
    sequences: int
    table_width: int

    @property
    def decodes(self) -> bool:
        """As many tokens as sequences: the runtime never passes an empty sequence, so each has one."""
        return self.tokens == self.sequences


def kernels_for(shapes: Shapes) -> tuple[KernelName, ...]:
    """The kernels of one call, in order."""
    return ("append", "decode", "merge") if shapes.decodes else ("append", "prefill")


def count_splits(spec: AttentionSpec, table_width: int, split_keys: int) -> int:
    """Most splits of `split_keys` keys, aligned to absolute positions, that one new token may see.

    A window of w keys touches at most ceil((w - 1) / split_keys) + 1 aligned splits, sinks the first ones.
    """
    attributes = spec.attributes
    every = -(-table_width * spec.page_size // split_keys)
    if attributes.local_window_size < 0:
        return max(every, 1)
    window = -(-(attributes.local_window_size - 1) // split_keys) + 1
    return max(min(every, window + -(-attributes.sink_size // split_keys)), 1)


def workspace_sizes(spec: AttentionSpec, shapes: Shapes, split_keys: int) -> dict[str, int]:
    """Bytes of each scratch buffer, in the order of WORKSPACE, rounded up to the alignment."""
    heads = spec.attributes.num_heads
    splits = count_splits(spec, shapes.table_width, split_keys) if shapes.decodes else 0
    partials = 4 * shapes.sequences * heads * splits
    sizes = (2 * shapes.tokens * heads * spec.head_size, partials, partials, partials * spec.head_size)
    return {
        name: -(-size // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
        for name, size in zip(WORKSPACE, sizes, strict=True)
    }


def numbers(
    spec: AttentionSpec, shapes: Shapes, packed: bool, constants: Mapping[str, int]
) -> dict[str, int | float]:
    """Every number by name, for one kernel of a call.

    Args:
        spec: the node.
        shapes: of the call.
        packed: query holds key and value too.
        constants: of the compiled kernel.
    """
    attributes = spec.attributes
    query_width = attributes.num_heads * spec.head_size
    kv_width = attributes.kv_num_heads * spec.head_size
    tile, split_keys = constants.get("tokens_per_tile", 1), constants.get("split_keys", 0)
    return {
        "tokens": shapes.tokens,
        "sequences": shapes.sequences,
        "table_width": shapes.table_width,
        "num_heads": attributes.num_heads,
        "kv_num_heads": attributes.kv_num_heads,
        "query_stride": query_width + 2 * kv_width if packed else query_width,
        "kv_stride": query_width + 2 * kv_width if packed else kv_width,
        "window": attributes.local_window_size,
        "sinks": attributes.sink_size,
        "splits": count_splits(spec, shapes.table_width, split_keys) if split_keys else 0,
        "scale": attributes.scale,
        "softcap": attributes.softcap,
        "epsilon": attributes.qk_norm_epsilon,
        "query_tiles": -(-shapes.tokens // tile) + shapes.sequences,
        "one": 1,
    }

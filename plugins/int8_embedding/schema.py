"""Int8Embedding as the CPU kernel implements it: a lookup in a table as `Int8Linear` packs it.

    y[t, k] = float(weight[ids[t], k]) * weight_scale[ids[t]]

One product a number, rounded once, so every backend gives the same bits. A model whose head is its embedding
holds one table for both: the node is given the head's constants.
"""

from __future__ import annotations

from dataclasses import dataclass

OP_TYPE = "Int8Embedding"
DOMAIN = "kvfold"
OPSET = 1

INPUTS = (
    "ids",  # int64 [T], 0 to rows - 1
    "weight",  # int8 [ceil(rows / 16), ceil(columns / 4), 16, 4]: blocks of 16 rows x 4 columns, zero padded
    "weight_scale",  # float32 [rows]
)
OUTPUTS = ("y",)  # float32 [T, columns]


@dataclass(frozen=True)
class Attributes:
    """Attributes of one node: the unpadded sizes of the table."""

    rows: int
    columns: int

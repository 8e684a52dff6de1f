"""What a batch of rows needs to be sampled on a GPU: kernels, arrays and numbers by the kernels' names.

Numbers, int32: `vocab`; `likely_width`, room for the likeliest tokens of a row. Grid only: `rows`,
`vocab_blocks` of EDIT_BLOCK logits, `one`. Buffers: `logits` and `edited`, float32 [any, vocab] and
[rows, vocab]; those of `tables_of`; those of `results_of`, which the kernels write.

`feed` brings their tokens into the next step: buffers `tokens` of the results and `input_ids`, int64 [ids].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kvfold.plugins.cpu.sampling_calls import NativeRow
from kvfold.plugins.cuda.attention_spec import KernelName, Variant

EDIT_BLOCK = 1024
FEED_BLOCK = 128
SAMPLING_KERNELS: tuple[KernelName, ...] = ("edit", "penalize", "sample", "feed")
SAMPLING_VARIANTS = {name: Variant(name, "float32", "float32", ()) for name in SAMPLING_KERNELS}
_FLOATS = ("temperature", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
_INTEGERS = ("top_k", "likely")
_DOUBLES = ("top_p", "draw")
# Triton's types of what the kernels take.
SAMPLING_TYPES = {
    **dict.fromkeys(("logits", "edited", "entry_biases", *_FLOATS), "*fp32"),
    **dict.fromkeys(("logprobs", "likely_logprobs", *_DOUBLES), "*fp64"),
    **dict.fromkeys(
        ("tokens", "status", "likely_ids", "sources", "is_edited", "mask_of", *_INTEGERS), "*i32"
    ),
    **dict.fromkeys(("entry_begin", "entry_end", "entry_ids", "entry_counts"), "*i32"),
    **dict.fromkeys(("vocab", "likely_width", "ids"), "i32"),
    "masks": "*u32",
    "input_ids": "*i64",
}


def kernels_of(tables: Mapping[str, np.ndarray]) -> tuple[KernelName, ...]:
    """The kernels of a batch, in order."""
    return ("edit", "penalize", "sample") if tables["is_edited"].any() else ("sample",)


def numbers_of(rows: int, vocab: int, likely_width: int) -> dict[str, int]:
    """Every number by name."""
    blocks = -(-vocab // EDIT_BLOCK)
    return {"rows": rows, "vocab": vocab, "likely_width": likely_width, "vocab_blocks": blocks, "one": 1}


def feed_numbers(ids: int) -> dict[str, int]:
    """Every number, by name, of the kernel that feeds a step of so many ids."""
    return {"ids": ids, "id_blocks": -(-ids // FEED_BLOCK), "one": 1}


def results_of(rows: int, likely_width: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Types and shapes of what the kernels write, as in `sampling_calls.Results`."""
    return {
        "logprobs": (np.float64, (rows,)),
        "likely_logprobs": (np.float64, (rows, likely_width)),
        "likely_ids": (np.int32, (rows, likely_width)),
        "tokens": (np.int32, (rows,)),
        "status": (np.int32, (rows,)),
    }


def tables_of(rows: Sequence[NativeRow], sources: Sequence[int]) -> dict[str, np.ndarray]:
    """Every array that the kernels read beside the logits, by name.

    Args:
        rows: how each is sampled.
        sources: the row of logits of each.
    """
    kinds = ((np.float32, _FLOATS), (np.float64, _DOUBLES), (np.int32, _INTEGERS))
    tables: dict[str, np.ndarray] = {
        name: np.array([getattr(row, name) for row in rows], dtype)
        for dtype, names in kinds
        for name in names
    }
    masks = {at: row.row.mask for at, row in enumerate(rows) if row.mask and row.row.mask is not None}
    mask_of = np.full(len(rows), -1, np.int32)
    mask_of[list(masks)] = np.arange(len(masks))
    tables |= {"sources": np.array(sources, np.int32), "mask_of": mask_of}
    tables["masks"] = np.stack([*masks.values()]) if masks else np.zeros((1, 1), np.uint32)
    entries = [_entries(row) for row in rows]
    ends = np.cumsum([len(ids) for ids, _, _ in entries], dtype=np.int32)
    tables["entry_begin"], tables["entry_end"] = np.append(np.int32(0), ends)[:-1], ends
    for name, parts in zip(
        ("entry_ids", "entry_biases", "entry_counts"), zip(*entries, strict=True), strict=True
    ):
        tables[name] = np.concatenate(parts)
    edited = (mask_of >= 0) | (tables["entry_begin"] < ends)
    tables["is_edited"] = edited.astype(np.int32)
    return tables


def _entries(row: NativeRow) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids that a row names, each once; what is added to each; how often each is in the reply, or -1."""
    told = row.row
    biased, banned = told.bias_ids, told.banned_ids[: row.banned_count]
    seen, counted = told.seen_ids[: row.seen_count], told.seen_counts[: row.seen_count]
    ids = np.unique(np.concatenate((biased, banned, seen)))
    biases, counts = np.zeros(len(ids), np.float32), np.full(len(ids), -1, np.int32)
    biases[np.searchsorted(ids, biased)] = told.bias_values
    biases[np.searchsorted(ids, banned)] = -np.inf
    counts[np.searchsorted(ids, seen)] = counted
    return ids, biases, counts

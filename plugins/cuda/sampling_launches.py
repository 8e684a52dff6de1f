"""What a batch of rows needs to be sampled on a GPU: kernels, arrays and numbers by the kernels' names.

Numbers, int32: `vocab`; `likely_width`, room for the likeliest tokens of a row. Grid only: `rows`,
`vocab_blocks` of EDIT_BLOCK logits, `one`. Buffers: `logits` and `edited`, float32 [any, vocab] and
[rows, vocab]; those of `tables_of`; those of `results_of`, which the kernels write.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvfold.plugins.cpu.sampling_calls import NativeRow

EDIT_BLOCK = 1024
SAMPLING_KERNELS = ("edit", "penalize", "sample")


def kernels_of(tables: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The kernels of a batch, in order."""
    return SAMPLING_KERNELS if tables["is_edited"].any() else SAMPLING_KERNELS[-1:]


def numbers_of(rows: int, vocab: int, likely_width: int) -> dict[str, int]:
    """Every number by name."""
    blocks = -(-vocab // EDIT_BLOCK)
    return {"rows": rows, "vocab": vocab, "likely_width": likely_width, "vocab_blocks": blocks, "one": 1}


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
    floats = ("temperature", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
    tables = {name: np.array([getattr(row, name) for row in rows], np.float32) for name in floats}
    for name in ("top_p", "draw"):
        tables[name] = np.array([getattr(row, name) for row in rows], np.float64)
    for name in ("top_k", "likely"):
        tables[name] = np.array([getattr(row, name) for row in rows], np.int32)
    tables["sources"] = np.array(sources, np.int32)
    masked = [at for at, row in enumerate(rows) if row.mask]
    tables["mask_of"] = np.full(len(rows), -1, np.int32)
    tables["mask_of"][masked] = np.arange(len(masked))
    masks = [rows[at].row.mask for at in masked]
    tables["masks"] = np.stack(masks) if masks else np.zeros((1, 1), np.uint32)
    entries = [_entries(row) for row in rows]
    ends = np.cumsum([len(ids) for ids, _, _ in entries], dtype=np.int32)
    tables["entry_begin"], tables["entry_end"] = np.append(np.int32(0), ends)[:-1], ends
    for name, parts in zip(
        ("entry_ids", "entry_biases", "entry_counts"), zip(*entries, strict=True), strict=True
    ):
        tables[name] = np.concatenate(parts)
    tables["is_edited"] = ((tables["mask_of"] >= 0) | (tables["entry_begin"] < ends)).astype(np.int32)
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

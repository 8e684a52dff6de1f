"""The calls that the kernels are held to on a GPU: every feature, and sizes too slow for an interpreter."""

from __future__ import annotations

from dataclasses import replace

from kvfold.plugins.paged_attention.inputs import Case

MQA = Case((), (), num_heads=9, kv_num_heads=1, int8_cache=True)
FEATURES = {
    "mqa": MQA,
    "mqa-float": replace(MQA, int8_cache=False),
    "window": replace(MQA, kv_num_heads=3, page_size=32, local_window_size=1024, sink_size=4),
    "window-float": Case((), (), page_size=64, local_window_size=300, sink_size=70),
    "softcap": Case((), (), 8, 2, 128, softcap=15.0, head_sink=True, qk_norm=True, int8_cache=True),
    "96": Case((), (), head_size=96, page_size=128, qk_norm=True, packed=False),
    "256": Case((), (), head_size=256, packed=False, int8_cache=True),
    "256-float": Case((), (), head_size=256, page_size=32, head_sink=True),
    "consumer": Case((), (), 8, 2, local_window_size=600, int8_cache=True, packed=False, writes=False),
}


def _with_lengths(case: Case, new: tuple[int, ...], past: tuple[int, ...]) -> Case:
    return replace(case, new_lengths=new, past_lengths=past)


# One new token of each sequence: append, decode, merge.
DECODE = {
    name: _with_lengths(case, (1,) * 8, (0, 1, 255, 256, 1000, 4095, 8000, 8191))
    for name, case in FEATURES.items()
} | {
    "100k": _with_lengths(MQA, (1,), (100_000,)),
    "batch-256": _with_lengths(MQA, (1,) * 256, tuple(37 * index % 2000 for index in range(256))),
}
# Chunks of prompts beside single tokens: append, prefill.
PREFILL = {
    name: _with_lengths(case, (300, 0, 1, 2047, 64), (0, 9, 500, 1000, 4033))
    for name, case in FEATURES.items()
} | {"100k": _with_lengths(MQA, (7,), (100_000,))}

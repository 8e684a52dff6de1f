"""Random PagedAttention cases, which every backend's parity test draws from."""

from __future__ import annotations

from hypothesis import strategies as st

from kvfold.plugins.paged_attention.inputs import Case

Lengths = st.SearchStrategy[list[tuple[int, int]]]


@st.composite
def cases(draw: st.DrawFn, lengths: Lengths, heads: list[tuple[int, int]], head_sizes: list[int]) -> Case:
    """Every feature of the op.

    Args:
        draw: hypothesis's.
        lengths: (new, past) tokens of each sequence.
        heads: (KV heads, query heads of each).
        head_sizes: channels of a head.
    """
    sequences = draw(lengths)
    kv_heads, group = draw(st.sampled_from(heads))
    window = draw(st.sampled_from([-1, -1, 1, 7, 32, 100, 1000]))
    return Case(
        new_lengths=tuple(new for new, _ in sequences),
        past_lengths=tuple(past for _, past in sequences),
        num_heads=kv_heads * group,
        kv_num_heads=kv_heads,
        head_size=draw(st.sampled_from(head_sizes)),
        page_size=draw(st.sampled_from([16, 32, 64, 128])),
        local_window_size=window,
        sink_size=draw(st.sampled_from([0, 4, 20])) if window >= 0 else 0,
        scale=draw(st.sampled_from([None, None, 0.0625])),
        softcap=draw(st.sampled_from([0.0, 0.0, 15.0])),
        int8_cache=draw(st.booleans()),
        head_sink=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        packed=draw(st.booleans()),
        writes=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )

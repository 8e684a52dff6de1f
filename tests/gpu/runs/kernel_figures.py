"""Figures of the attention kernels: beside PyTorch's own attention, by window, and as bytes a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.plugins.cuda.attention_spec import AttentionSpec, CacheDtype
from kvfold.plugins.paged_attention.schema import Attributes

Peer = Literal["flash-attention 2", "cuDNN"]
PEERS: tuple[Peer, ...] = ("flash-attention 2", "cuDNN")
CACHES: tuple[CacheDtype, ...] = ("float16", "int8")
MEASURED = "measured"


class KernelLab(Protocol):
    """A GPU on which kernels are timed."""

    def ours(self, case: TuningCase) -> float:
        """Seconds of a call of our kernels."""
        ...

    def peer(self, name: Peer, case: TuningCase) -> float | str:
        """Seconds of PyTorch's causal attention over the same, without a window; or why it cannot."""
        ...

    def copied_bytes_per_second(self) -> float:
        """Bytes read and written in a second by a copy from the device to itself."""
        ...


@dataclass(frozen=True)
class Figure:
    """One figure, in words."""

    name: str
    figures: str


def copy_figures(lab: KernelLab) -> Iterator[Figure]:
    """How fast the card copies."""
    yield Figure("device to device copy", f"{lab.copied_bytes_per_second() / 1e9:,.0f} GB/s read and written")


def prefill_figures(lab: KernelLab) -> Iterator[Figure]:
    """Prefill beside PyTorch's attention: its speed is 1 over theirs."""
    for heads, tokens in (((32, 8, 128), 8192), ((32, 8, 128), 2048), ((9, 1, 64), 8192)):
        flops = 2 * heads[0] * heads[2] * tokens**2
        peers = {name: lab.peer(name, _case("prefill", heads, "float16", 1, 0, tokens)) for name in PEERS}
        for cache in CACHES:
            seconds = lab.ours(_case("prefill", heads, cache, 1, 0, tokens))
            beside = "; ".join(_beside(name, seconds, theirs) for name, theirs in peers.items())
            yield Figure(
                f"prefill {heads[0]}/{heads[1]}x{heads[2]}, {tokens:,} tokens, {cache} cache",
                f"{1e3 * seconds:.3f} ms, {flops / seconds / 1e12:.0f} TFLOP/s; {beside}",
            )


def window_figures(lab: KernelLab) -> Iterator[Figure]:
    """Prefill of 8,192 tokens under windows: its time should follow the window."""
    for window in (128, 512, 2048, -1):
        seconds = lab.ours(_case("prefill", (9, 1, 64), "int8", 1, 0, 8192, window))
        yield Figure(
            f"prefill 9/1x64, 8,192 tokens, window {window if window > 0 else 'none'}",
            f"{1e3 * seconds:.3f} ms",
        )


def decode_figures(lab: KernelLab) -> Iterator[Figure]:
    """Decode over long caches as a share of what a copy reads and writes, and under a window."""
    copied = lab.copied_bytes_per_second()
    for heads in ((9, 1, 64), (32, 8, 128)):
        for cache in CACHES:
            for sequences in (1, 64):
                case = _case("decode", heads, cache, sequences, 8191, 1)
                seconds = lab.ours(case)
                read = 2 * sequences * 8192 * heads[1] * heads[2] * (1 if cache == "int8" else 2) / seconds
                yield Figure(
                    f"decode {heads[0]}/{heads[1]}x{heads[2]}, {sequences} x 8,192, {cache} cache",
                    f"{1e3 * seconds:.3f} ms, {read / 1e9:,.0f} GB/s, {read / copied:.0%} of the copy",
                )
    windowed = _case("decode", (9, 1, 64), "int8", 128, 2047, 1, 128)
    theirs = lab.peer("cuDNN", _case("decode", (9, 1, 64), "float16", 128, 2047, 1))
    seconds = lab.ours(windowed)
    yield Figure(
        "decode 9/1x64, 128 x 2,048, window 128, int8 cache",
        f"{1e3 * seconds:.3f} ms; over all keys {_beside('cuDNN', seconds, theirs)}",
    )


GROUPS = {
    "copy": copy_figures,
    "prefill": prefill_figures,
    "windows": window_figures,
    "decode": decode_figures,
}


def _case(
    kernel: Literal["prefill", "decode"],
    heads: tuple[int, int, int],
    cache: CacheDtype,
    sequences: int,
    past: int,
    new: int,
    window: int = -1,
) -> TuningCase:
    num_heads, kv_num_heads, head_size = heads
    attributes = Attributes(num_heads, kv_num_heads, head_size**-0.5, local_window_size=window)
    if cache == "int8":
        attributes = replace(attributes, k_quant_type="PER_CHANNEL", v_quant_type="PER_CHANNEL")
    spec = AttentionSpec(attributes, head_size, 16, "float16", cache, writes=False)
    return TuningCase(kernel, spec, sequences, past, new)


def _beside(name: str, ours: float, theirs: float | str) -> str:
    if isinstance(theirs, str):
        return f"{name}: {theirs}"
    return f"{name} {1e3 * theirs:.3f} ms, {theirs / ours:.2f} of its speed"

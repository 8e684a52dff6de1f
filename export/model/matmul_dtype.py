"""How this machine multiplies matrices fastest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def matmul_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies it natively (about three times as fast), else float32."""
    features = torch.cpu.get_capabilities()
    native = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


@contextmanager
def fast_products() -> Iterator[None]:
    """Let float32 products round their factors to bfloat16, for work that bears what `matmul_dtype` rounds.

    It is faster where nothing is rounded, too: then oneDNN multiplies in the place of MKL, which takes twice
    as long on an AMD CPU.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

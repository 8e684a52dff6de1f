"""Which dtype this machine multiplies matrices fastest in."""

from __future__ import annotations

import torch


def matmul_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies it natively (about three times as fast), else float32."""
    features = torch.cpu.get_capabilities()
    native = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32

"""The sampling kernels compile for GPUs old and new, within their registers, and round as the reference."""

from __future__ import annotations

import pytest

from kvfold.plugins.cuda.compile_kernels import compile_variant
from kvfold.plugins.cuda.sampling_launches import SAMPLING_KERNELS, SAMPLING_VARIANTS


@pytest.mark.parametrize("architecture", [75, 80, 90, 120])
@pytest.mark.parametrize("kernel", SAMPLING_KERNELS)
def test_compiles_without_spilling_and_without_fused_multiply_add(kernel: str, architecture: int) -> None:
    cubin = compile_variant(SAMPLING_VARIANTS[kernel], architecture)  # type: ignore[index]
    assert cubin.kernel.spill_bytes == 0
    assert "fma.rn.f32" not in cubin.ptx, "penalties are IEEE operations, one after the other"

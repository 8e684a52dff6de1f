"""These tests compare with tensors on the CPU, and bytes with bytes, so they heal on the CPU anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def no_gpu() -> Iterator[None]:
    """Hide GPUs from torch, in processes that a test starts too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield

"""What an engine takes of the GPU's memory, counted before it is taken."""

from __future__ import annotations

from collections.abc import Mapping

from kvfold.plugins.contract.errors import CapacityError

MIB = 1 << 20
# Left for what cannot be asked beforehand: captured graphs, attention kernels, each context's own state. A
# guess, not measured.
MARGIN = 256 * MIB


def check_memory(parts: Mapping[str, int], free: int) -> None:
    """Refuse an engine whose parts do not fit.

    Args:
        parts: bytes by what they are for.
        free: bytes nobody held before the first part was taken.

    Raises:
        CapacityError: with every part, and what to lower.
    """
    needed = sum(parts.values())
    if needed <= free - MARGIN:
        return
    listed = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items())
    raise CapacityError(
        f"the engine needs {_mib(needed)} of GPU memory: {listed}; {_mib(free)} are free, of which "
        f"{_mib(MARGIN)} are kept for CUDA graphs and kernels. Lower kv_cache_bytes, end other programs on "
        "the GPU, or build with a lower tensorrt.max_num_batched_tokens and tensorrt.max_num_seqs in the "
        "recipe (workspace, step inputs and logits shrink with them)"
    )


def _mib(size: int) -> str:
    return f"{-(-size // MIB):,} MiB"

"""What an engine takes of the GPU's memory: all is counted, and refused, before any is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kvfold.plugins.contract.errors import CapacityError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.cuda.staging import bind_step
from kvfold.runtime.engine.cuda.step_shape import largest_shape
from kvfold.runtime.engine.engine_config import TensorRTFacts
from kvfold.runtime.engine.kv_pools import KvPool

MIB = 1 << 20
# Left for what cannot be asked beforehand: captured graphs, attention kernels, each context's own state. A
# guess, not measured.
MARGIN = 256 * MIB


@dataclass(frozen=True)
class StepSizes:
    """Bytes that the largest step of a plan needs.

    Attributes:
        inputs: of the binding table.
        logits: of the output.
    """

    inputs: int
    logits: int

    @classmethod
    def of(cls, facts: TensorRTFacts, plan: FoldPlan, vocab_size: int) -> Self:
        """Over both profiles."""
        profiles = (facts.decode, facts.prefill)
        return cls(
            inputs=max(bind_step(largest_shape(limits, plan), plan).nbytes for limits in profiles),
            logits=4 * vocab_size * max(limits.max_logits for limits in profiles),
        )


@dataclass(frozen=True)
class FixedMemory:
    """Device memory that every context of an engine is bound to, for the engine's life.

    Attributes:
        pools: the KV caches, and the address of each one's first byte.
        logits: address of the output, float32 [rows, vocab_size].
        workspace: address of the scratch memory.
        workspace_bytes: its size.
        inputs: address of the step's binding table.
    """

    pools: tuple[tuple[KvPool, int], ...]
    logits: int
    workspace: int
    workspace_bytes: int
    inputs: int

    @classmethod
    def take(cls, device: Device, pages: DevicePages, sizes: StepSizes, workspace_bytes: int) -> Self:
        """All of it, from a device with room for it (`check_memory`)."""
        return cls(
            pools=tuple(pages.pools),
            logits=device.allocate(sizes.logits),
            workspace=device.allocate(workspace_bytes),
            workspace_bytes=workspace_bytes,
            inputs=device.allocate(sizes.inputs),
        )


def check_pages(num_pages: Mapping[str, int], max_pages: Mapping[str, int]) -> None:
    """Refuse a plan whose pools are to be smaller than a slab; raises CapacityError."""
    for group, pages in num_pages.items():
        if pages > max_pages[group]:
            raise CapacityError(
                f"the pool of group {group} has {pages} pages at least, as the GPU gives memory, this plan "
                f"takes {max_pages[group]}; build the engine again with `kvfold build`"
            )


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

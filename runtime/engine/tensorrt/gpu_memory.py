"""What a plan takes of the GPU's memory for its life; it is counted before any is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kvfold.plugins.contract.errors import CapacityError
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.cuda.memory_check import StepSizes
from kvfold.runtime.engine.kv_pools import KvPool


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

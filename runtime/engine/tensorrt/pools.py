"""The KV pools of an engine: one for each cache input, which is also the cache output of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import CapacityError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.tensorrt.device import Device


@dataclass(frozen=True)
class Pool:
    """Device memory of one cache.

    Attributes:
        input, output: names in the graph; the plugin updates the cache in place, so both have this address.
        shape: [pages, page_size, KV heads, head_dim].
        address: of its first byte.
    """

    input: str
    output: str
    shape: tuple[int, int, int, int]
    address: int


def check_pages(num_pages: Mapping[str, int], max_pages: Mapping[str, int]) -> None:
    """Refuse pools with more pages than a plan takes; raises CapacityError."""
    for group, pages in num_pages.items():
        if pages > max_pages[group]:
            raise CapacityError(
                f"the pool of group {group} has {pages} pages, this plan takes {max_pages[group]}; lower "
                "kv_cache_bytes"
            )


def pool_bytes(plan: FoldPlan, num_pages: Mapping[str, int]) -> int:
    """Bytes of all pools."""
    return sum(num_pages[group.name] * plan.page_size * group.bytes_per_token for group in plan.groups)


def allocate_pools(device: Device, plan: FoldPlan, num_pages: Mapping[str, int]) -> tuple[Pool, ...]:
    """A zeroed pool for every cache of a plan."""
    pools = []
    for bank in plan.banks:
        pages = num_pages[bank.group]
        shape = (pages, plan.page_size, bank.num_key_value_heads, bank.head_dim)
        size = pages * plan.page_size * bank.bytes_per_token // 2  # K and V have one each
        names = zip(contract.cache_inputs(bank.layer), contract.cache_outputs(bank.layer), strict=True)
        pools += [Pool(given, updated, shape, device.allocate(size)) for given, updated in names]
    return tuple(pools)

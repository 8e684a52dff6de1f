"""The KV pools of an engine: one for each cache input of its graph, which is also the output of that name."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.fold_plan import ITEMSIZE, KvDtype
from kvfold.runtime.engine.protocol import EngineInfo


@dataclass(frozen=True)
class KvPool:
    """The pages of one cache, at addresses that an engine reserves.

    Attributes:
        input, output: names in the graph; a cache is updated in place, so both have one address.
        group: its horizon group.
        dtype: of its elements.
        shape: [pages, page_size, KV heads, head_dim].
        row_offset: where its part of a page begins in a row of a `PageStore`'s buffer, in bytes.
    """

    input: str
    output: str
    group: str
    dtype: KvDtype
    shape: tuple[int, int, int, int]
    row_offset: int

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return ITEMSIZE[self.dtype] * prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, whether they have memory or not."""
        return self.shape[0] * self.page_bytes


def kv_pools(info: EngineInfo) -> tuple[KvPool, ...]:
    """A pool for every cache of an engine's plan, in its order of banks, keys before values."""
    pools = []
    row_bytes = dict.fromkeys(info.num_pages, 0)
    for bank in info.plan.banks:
        shape = (info.num_pages[bank.group], info.plan.page_size, bank.num_key_value_heads, bank.head_dim)
        names = zip(contract.cache_inputs(bank.layer), contract.cache_outputs(bank.layer), strict=True)
        for input_name, output_name in names:
            offset = row_bytes[bank.group]
            pools.append(KvPool(input_name, output_name, bank.group, bank.kv_dtype, shape, offset))
            row_bytes[bank.group] += pools[-1].page_bytes
    return tuple(pools)

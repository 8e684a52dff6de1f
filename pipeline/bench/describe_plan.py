"""What a plan leaves of the KV cache in one clause: figures of unequal work must say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan, HorizonGroup


def describe_plan(plan: FoldPlan) -> str:
    """`30 layers keep 30 KV banks: 5 global in int8, 25 of window 1,024 with 4 sinks in int8`."""
    groups = ", ".join(_describe_group(plan, group) for group in plan.groups)
    return f"{len(plan.layers)} layers keep {len(plan.banks)} KV banks: {groups}"


def _describe_group(plan: FoldPlan, group: HorizonGroup) -> str:
    sees = "global" if group.sliding_window is None else f"of window {group.sliding_window:,}"
    sinks = f" with {group.sink_size} sinks" if group.sink_size else ""
    dtypes = sorted({plan.layers[bank.layer].kv_dtype for bank in group.banks})
    return f"{len(group.banks)} {sees}{sinks} in {' and '.join(dtypes)}"

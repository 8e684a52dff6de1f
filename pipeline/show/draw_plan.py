"""Draw a FoldPlan in the terminal: a line per layer, then what it does to the KV cache."""

from __future__ import annotations

from rich.console import Group

from kvfold.pipeline.show.cache_tables import kv_bytes_table
from kvfold.pipeline.show.table import Cell, Table
from kvfold.pipeline.show.terminal import draw_table
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from kvfold.plugins.contract.kv_savings import kv_bytes

HORIZON_WIDTH = 12


def draw_plan(plan: FoldPlan, shape: AttentionShape) -> Group:
    """The whole drawing: layers, then totals."""
    return Group(draw_table(layer_table(plan, shape)), draw_table(kv_bytes_table(kv_bytes(plan, shape))))


def layer_table(plan: FoldPlan, shape: AttentionShape) -> Table:
    """What each layer saw and sees, whose KV it reads, and what a token costs there."""
    groups = ", ".join(f"{len(group.banks)} {group.name}" for group in plan.groups)
    longest = max((layer.sliding_window or 0) for layer in plan.layers)
    banks = {bank.layer: number for number, bank in enumerate(plan.banks)}
    return Table.of(
        "",
        ("layer", "sees", "original", "plan", "KV from", "bank", "heads", "dtype", "B/token"),
        (
            (
                str(index),
                Cell(_horizon_bar(layer, longest), "good" if layer.sliding_window else "strong"),
                str(shape.windows[index] or "global"),
                _horizon(layer),
                *_bank_cells(plan, index, banks[layer.donor]),
                f"{layer.num_key_value_heads} / {plan.num_attention_heads}",
                layer.kv_dtype,
                str(plan.banks[banks[layer.donor]].bytes_per_token if plan.is_producer(index) else 0),
            )
            for index, layer in enumerate(plan.layers)
        ),
        f"{len(plan.layers)} layers keep {len(plan.banks)} KV banks: {groups}",
    ).drawn_by("sees")


def _bank_cells(plan: FoldPlan, index: int, bank: int) -> tuple[str | Cell, str]:
    """Whose KV a layer reads, and its bank's number."""
    if plan.is_producer(index):
        return "itself", str(bank)
    return Cell(f"layer {plan.layers[index].donor}", "strong"), f"= {bank}"


def _horizon_bar(layer: LayerPlan, longest: int) -> str:
    """Sinks on the left, the window on the right, dots for what is hidden between them."""
    if layer.sliding_window is None:
        return "█" * HORIZON_WIDTH
    width = max(1, round(layer.sliding_window / longest * HORIZON_WIDTH / 2))
    return ("▌" if layer.sink_size else "·") + "·" * (HORIZON_WIDTH - 1 - width) + "█" * width


def _horizon(layer: LayerPlan) -> str:
    if layer.sliding_window is None:
        return "global"
    if layer.head_sink:
        return f"{layer.sliding_window} + learned"
    return f"{layer.sliding_window}" + (f" + {layer.sink_size} sinks" if layer.sink_size else "")

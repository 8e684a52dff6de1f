"""Draw a FoldPlan in the terminal: a line per layer, then what it does to the KV cache."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kvfold.pipeline.show.cache_tables import kv_bytes_table
from kvfold.pipeline.show.terminal import draw_table
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from kvfold.plugins.contract.kv_savings import kv_bytes
from kvfold.plugins.contract.plan_presets import AttentionShape

GLOBAL_STYLE, LOCAL_STYLE = "bold cyan", "green"
HORIZON_WIDTH = 16


def draw_plan(plan: FoldPlan, shape: AttentionShape) -> Group:
    """The whole drawing: layers, then totals."""
    groups = ", ".join(f"{len(group.banks)} {group.name}" for group in plan.groups)
    banks = f"\n{len(plan.layers)} layers keep {len(plan.banks)} KV banks: {groups}"
    return Group(_layers(plan), banks, draw_table(kv_bytes_table(kv_bytes(plan, shape))))


def _layers(plan: FoldPlan) -> Table:
    longest = max((layer.sliding_window or 0) for layer in plan.layers)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", justify="right", no_wrap=True)
    for name in ("sees", "window", "KV from", "bank", "heads", "dtype", "B/token"):
        table.add_column(name, no_wrap=True, justify="right" if name == "B/token" else "left")
    banks = {bank.layer: number for number, bank in enumerate(plan.banks)}
    for index, layer in enumerate(plan.layers):
        producer = plan.is_producer(index)
        style = GLOBAL_STYLE if layer.sliding_window is None else LOCAL_STYLE
        bank = plan.banks[banks[layer.donor]]
        table.add_row(
            str(index),
            _horizon_bar(layer.sliding_window, layer.sink_size, longest, style),
            _horizon(layer),
            "itself" if producer else Text(f"layer {layer.donor}", style="yellow"),
            f"{'' if producer else '= '}{banks[layer.donor]}",
            f"{layer.num_key_value_heads} / {plan.num_attention_heads}",
            layer.kv_dtype,
            str(bank.bytes_per_token) if producer else Text("0", style="yellow"),
        )
    return table


def _horizon_bar(window: int | None, sinks: int, longest: int, style: str) -> Text:
    """Sinks on the left, the window on the right, darkness between them."""
    if window is None:
        return Text("█" * HORIZON_WIDTH, style=style)
    width = max(1, round(window / longest * HORIZON_WIDTH / 2))
    sink = "▌" if sinks else "·"
    return Text.assemble((sink, style), ("·" * (HORIZON_WIDTH - 1 - width), "dim"), ("█" * width, style))


def _horizon(layer: LayerPlan) -> str:
    if layer.sliding_window is None:
        return "global"
    if layer.head_sink:
        return f"{layer.sliding_window} + learned"
    return f"{layer.sliding_window}" + (f" + {layer.sink_size} sinks" if layer.sink_size else "")

"""Draw a FoldPlan in the terminal: a line per layer, then what it does to the KV cache."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.kv_bytes import bytes_per_token, format_bytes, kv_bytes
from plugins.fold_plan import FoldPlan
from plugins.plan_presets import AttentionShape

GLOBAL_STYLE, LOCAL_STYLE = "bold cyan", "green"
HORIZON_WIDTH = 16


def draw_plan(plan: FoldPlan, shape: AttentionShape) -> Group:
    """The whole drawing: layers, then totals."""
    groups = ", ".join(f"{group.name} {len(group.banks)}" for group in plan.groups)
    title = f"\nKV cache of one sequence: {len(plan.banks)} banks for {len(plan.layers)} layers ({groups})"
    return Group(_layers(plan), Text(title, style="bold"), _totals(plan, shape))


def _layers(plan: FoldPlan) -> Table:
    longest = max((layer.sliding_window or 0) for layer in plan.layers)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", justify="right")
    for name in ("sees", "window", "KV from", "bank", "heads", "dtype", "bytes/token"):
        table.add_column(name, no_wrap=True, justify="right" if name == "bytes/token" else "left")
    banks = {bank.layer: number for number, bank in enumerate(plan.banks)}
    for index, layer in enumerate(plan.layers):
        producer = plan.is_producer(index)
        style = GLOBAL_STYLE if layer.sliding_window is None else LOCAL_STYLE
        bank = plan.banks[banks[layer.donor]]
        table.add_row(
            str(index),
            _horizon_bar(layer.sliding_window, layer.sink_size, longest, style),
            _horizon(layer.sliding_window, layer.sink_size),
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


def _horizon(window: int | None, sinks: int) -> str:
    if window is None:
        return "global"
    return f"{window}" + (f" + {sinks} sinks" if sinks else "")


def _totals(plan: FoldPlan, shape: AttentionShape) -> Table:
    before = shape.kv_bytes(1)
    table = Table(
        box=None,
        pad_edge=False,
    )
    for name in ("context", "original (bf16)", "folded", "smaller"):
        table.add_column(name, justify="right")
    after = bytes_per_token(plan)
    table.add_row("new token", format_bytes(before), format_bytes(after), f"{before / after:.1f} x")
    for row in kv_bytes(plan, shape):
        table.add_row(
            f"{row.context_length:,}",
            format_bytes(row.original),
            format_bytes(row.folded),
            Text(f"{row.reduction:.1f} x", style="bold green" if row.reduction > 1 else "bold red"),
        )
    return table

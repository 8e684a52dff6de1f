"""The report's drawings as data for the template: what is where, in pixels. The template holds the SVG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.pipeline.quality.validate.measurements import KL_BIN_EDGES, Comparison
from kvfold.pipeline.show.axes import BOTTOM, LEFT, RIGHT, TOP, Scale, Tick
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.byte_sizes import format_bytes
from kvfold.plugins.contract.fold_plan import FoldPlan

LONGEST_CONTEXT = 8192
CONTEXT_STEP = 64
PLAN_WIDTH, PLAN_TOP, PLAN_HEIGHT = 960, 12, 150
MIB = 1024**2


@dataclass(frozen=True)
class Series:
    """A line or outline: CSS class, name, SVG points, and the pixel and text of its end."""

    style: str
    name: str
    points: str
    end_y: float = 0.0
    end_label: str = ""


@dataclass(frozen=True)
class Chart:
    """Axes and series, in the frame that all charts have."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series]


@dataclass(frozen=True)
class LayerColumn:
    """One layer of the plan drawing: a column whose top is the first token and whose foot the current one.

    Attributes:
        style: `global` or `local`, with ` consumer` for a layer that reads another's KV.
        x, width: of the column.
        window_y, window_height: what the window shows.
        sinks: whether the first tokens stay visible.
        donor_x: centre of the donor's column for a consumer.
        title: the tooltip.
    """

    index: int
    style: str
    x: float
    width: float
    window_y: float
    window_height: float
    sinks: bool
    donor_x: float | None
    title: str

    @property
    def center(self) -> float:
        """Centre of the column."""
        return self.x + self.width / 2


def draw_plan_columns(plan: FoldPlan) -> list[LayerColumn]:
    """A column per layer; window heights are to scale for the longest context."""
    pitch = PLAN_WIDTH / len(plan.layers)
    width = round(pitch * 0.72, 1)
    columns: list[LayerColumn] = []
    for index, layer in enumerate(plan.layers):
        window = min(layer.sliding_window or LONGEST_CONTEXT, LONGEST_CONTEXT)
        height = max(6.0, PLAN_HEIGHT * window / LONGEST_CONTEXT)
        kind = "global" if layer.sliding_window is None else "local"
        producer = plan.is_producer(index)
        columns.append(
            LayerColumn(
                index=index,
                style=kind if producer else f"{kind} consumer",
                x=round(index * pitch, 1),
                width=width,
                window_y=round(PLAN_TOP + PLAN_HEIGHT - height, 1),
                window_height=round(height, 1),
                sinks=layer.sink_size > 0,
                donor_x=None if producer else columns[layer.donor].center,
                title=f"layer {index}: {kind}, {layer.num_key_value_heads} KV heads, {layer.kv_dtype}, "
                + ("own KV" if producer else f"KV of layer {layer.donor}"),
            )
        )
    return columns


def chart_kv_bytes(plan: FoldPlan, shape: AttentionShape) -> Chart:
    """KV MiB of one sequence over its context length, before and after."""
    lengths = range(CONTEXT_STEP, LONGEST_CONTEXT + 1, CONTEXT_STEP)
    top = max(shape.kv_bytes(LONGEST_CONTEXT), plan.kv_bytes(LONGEST_CONTEXT)) / MIB
    x, y = Scale(0, LONGEST_CONTEXT, LEFT, RIGHT), Scale(0, top * 1.05, BOTTOM, TOP)
    series = []
    for style, name, count in (
        ("original", "original, bf16", shape.kv_bytes),
        ("folded", "folded", plan.kv_bytes),
    ):
        points = " ".join(f"{x(length)},{y(count(length) / MIB)}" for length in lengths)
        last = count(LONGEST_CONTEXT)
        series.append(Series(style, name, points, y(last / MIB), format_bytes(last)))
    x_ticks = [Tick(x(length), f"{length:,}") for length in range(0, LONGEST_CONTEXT + 1, 2048)]
    return Chart(x_ticks, [Tick(y(value), f"{value:g} MiB") for value in y.ticks(5)], series)


def chart_kl_histogram(pairs: list[tuple[str, str, Comparison]]) -> Chart:
    """Share of positions over KL, logarithmic; pairs of (CSS class, name, comparison)."""
    shares = [np.array(pair.kl_histogram) / sum(pair.kl_histogram) for _, _, pair in pairs]
    decades = np.log10(KL_BIN_EDGES)
    step = decades[1] - decades[0]
    edges = [decades[0] - step, *decades, decades[-1] + step]
    x = Scale(edges[0], edges[-1], LEFT, RIGHT)
    y = Scale(0, 1.1 * float(max(share.max() for share in shares)), BOTTOM, TOP)
    series = []
    for (style, name, _), share in zip(pairs, shares, strict=True):
        corners = [(edges[0], 0.0)]
        for left, right, value in zip(edges, edges[1:], share, strict=False):
            corners += [(left, value), (right, value)]
        corners.append((edges[-1], 0.0))
        points = " ".join(f"{x(float(place))},{y(float(value))}" for place, value in corners)
        series.append(Series(style, name, points))
    x_ticks = [Tick(x(power), f"1e{power}") for power in range(-8, 2, 2)]
    return Chart(x_ticks, [Tick(y(value), f"{value:.0%}") for value in y.ticks(5)], series)

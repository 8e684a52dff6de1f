"""The ladder as a picture: KV bytes against KL, and against perplexity. The template holds the SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, log10

from kvfold.pipeline.quality.format_estimate import format_estimate
from kvfold.pipeline.quality.intervals import Estimate
from kvfold.pipeline.show import axes
from kvfold.pipeline.show.axes import BOTTOM, LEFT, RIGHT, TOP, Scale, Tick
from kvfold.pipeline.show.html import load_template
from kvfold.pipeline.studies.frontier.rungs import SHOWN_CONTEXT, Frontier, Rung
from kvfold.plugins.contract.byte_sizes import format_bytes

# A KL below 10 to this power, nat per token, is drawn at the foot: zero has no logarithm.
FLOOR_POWER = -4
# Smallest range of perplexity ratios: where nothing is lost, the axis must not magnify rounding.
LEAST_RATIO_RANGE = 0.02
LETTER_WIDTH, LINE_HEIGHT = 8.5, 17.0


@dataclass(frozen=True)
class Mark:
    """A rung in a panel: its pixels, its interval's, and where its name stands."""

    name: str
    style: str
    title: str
    x: float
    y: float
    low_y: float
    high_y: float
    label_x: float
    label_y: float


@dataclass(frozen=True)
class Panel:
    """One picture; `line` joins the rungs of the frontier, as SVG points."""

    title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    original_x: float
    marks: list[Mark]
    line: str


def draw_frontier(frontier: Frontier) -> str:
    """The SVG, self-contained."""
    panels = [_kl_panel(frontier), _ratio_panel(frontier)]
    return load_template("frontier.svg.j2").render(
        frame=axes, panels=panels, context=SHOWN_CONTEXT, text=frontier.text
    )


def _kl_panel(frontier: Frontier) -> Panel:
    highest = max(_most(rung.cost.kl) for rung in frontier.rungs)
    top = max(FLOOR_POWER + 1, ceil(log10(max(highest, 10**FLOOR_POWER))))
    scale = Scale(FLOOR_POWER, top, BOTTOM, TOP)
    ticks = [Tick(scale(power), f"1e{power}") for power in range(FLOOR_POWER + 1, top + 1)]
    ticks.insert(0, Tick(scale(FLOOR_POWER), f"≤ 1e{FLOOR_POWER}"))

    def y(value: float) -> float:
        return scale(max(FLOOR_POWER, log10(value)) if value > 0 else FLOOR_POWER)

    return _panel(frontier, "KL to the original, nat per token", lambda rung: rung.cost.kl, y, ticks)


def _ratio_panel(frontier: Frontier) -> Panel:
    """Ratios go by their logarithm: what doubles perplexity stands as high above 1 as 4 above 2."""
    ratios = [rung.cost.ratio for rung in frontier.rungs]
    low, high = min(1.0, *map(_least, ratios)), max(1.0, *map(_most, ratios))
    room = max(log10(high / low), log10(1 + LEAST_RATIO_RANGE)) / 20
    scale = Scale(log10(low) - room, log10(low) + 21 * room, BOTTOM, TOP)
    ticks = [Tick(scale(log10(value)), f"{value:.6g}") for value in _ratio_ticks(scale)]
    return _panel(
        frontier,
        "Perplexity over the original's",
        lambda rung: rung.cost.ratio,
        lambda value: scale(log10(value)),
        ticks,
    )


def _ratio_ticks(scale: Scale) -> list[float]:
    """Round ratios: 1, 2 and 5 times powers of ten, or evenly spaced ones where those would be too few."""
    powers = range(floor(scale.low), ceil(scale.high) + 1)
    decades = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [value for value in decades if scale.low <= log10(value) <= scale.high]
    return inside if len(inside) > 2 else Scale(10**scale.low, 10**scale.high, 0, 1).ticks(5)


def _panel(
    frontier: Frontier,
    title: str,
    measured: Callable[[Rung], Estimate],
    y: Callable[[float], float],
    y_ticks: list[Tick],
) -> Panel:
    """Bytes go along x, each doubling as far as the last."""
    original = frontier.rungs[0].kv(SHOWN_CONTEXT).original
    sizes = [original, *(rung.size for rung in frontier.rungs)]
    first, last = floor(log2(min(sizes))), ceil(log2(max(sizes)))
    last = max(last, first + 1)
    scale = Scale(first, last, LEFT, RIGHT)
    tops = [(scale(log2(rung.size)), y(_most(measured(rung)))) for rung in frontier.rungs]
    labels = _place_labels([rung.recipe for rung in frontier.rungs], tops)
    marks = []
    for rung, (at, top), (label_x, label_y) in zip(frontier.rungs, tops, labels, strict=True):
        estimate = measured(rung)
        marks.append(
            Mark(
                name=rung.recipe,
                style="best" if rung in frontier.best else "beaten",
                title=f"{rung.recipe}: {format_bytes(rung.size)}, {format_estimate(estimate, '.4g')}",
                x=at,
                y=y(estimate.value),
                low_y=y(_least(estimate)),
                high_y=top,
                label_x=label_x,
                label_y=label_y,
            )
        )
    return Panel(
        title=title,
        x_ticks=[Tick(scale(power), format_bytes(2**power)) for power in range(first, last + 1)],
        y_ticks=y_ticks,
        original_x=scale(log2(original)),
        marks=marks,
        line=" ".join(f"{mark.x},{mark.y}" for mark in marks if mark.style == "best"),
    )


def _place_labels(names: Sequence[str], tops: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centre and baseline of each name: above its interval, in the frame, higher where another stands."""
    placed: list[tuple[float, float, float]] = []
    for name, (x, y) in zip(names, tops, strict=True):
        half = len(name) * LETTER_WIDTH / 2
        center, line = min(max(x, LEFT + half), RIGHT - half), y - 10
        while any(abs(center - c) < half + h and abs(line - at) < LINE_HEIGHT for c, at, h in placed):
            line -= LINE_HEIGHT
        placed.append((round(center, 1), round(line, 1), half))
    return [(center, line) for center, line, _ in placed]


def _least(estimate: Estimate) -> float:
    return estimate.value if estimate.low is None else estimate.low


def _most(estimate: Estimate) -> float:
    return estimate.value if estimate.high is None else estimate.high

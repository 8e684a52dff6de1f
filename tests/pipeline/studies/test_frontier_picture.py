"""A ladder's picture, with figures that strain it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from kvfold.pipeline.studies.frontier.frontier_picture import draw_frontier
from kvfold.pipeline.studies.frontier.rungs import Frontier
from tests.pipeline.studies.made_up_rungs import make_rung

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("interval", [None, 0.5])
def test_extremes_stay_inside_the_frame_and_names_apart(interval: float | None) -> None:
    """No loss, equal rungs, a lone rung, KL from 0 to 20, with and without intervals."""
    costs = (0.0, 0.0, 1e-7, 0.01, 20.0)
    every = tuple(
        make_rung(f"a longer name {index}", 1 << 18, kl, interval) for index, kl in enumerate(costs)
    )
    for chosen in (every, every[:1], every[-1:]):
        root = ElementTree.fromstring(draw_frontier(Frontier(text="a < b & c", rungs=chosen)))
        for group in root.findall(f"{SVG}g"):
            ends = [float(line.get(key, "")) for line in group.iter(f"{SVG}line") for key in ("y1", "y2")]
            assert min(ends) >= 16 and max(ends) <= 262
            spots = [
                (float(text.get("x", "")), float(text.get("y", "")))
                for text in group.iter(f"{SVG}text")
                if text.get("class") == "name"
            ]
            assert len(spots) == len(set(spots)) == len(chosen)

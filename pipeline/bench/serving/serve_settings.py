"""ServeSettings: what of servers is measured. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvfold.pipeline.bench.serving.scenario_names import USUAL


@dataclass(frozen=True)
class ServeSettings:
    """What of servers is measured.

    Attributes:
        scenarios: names in `SCENARIOS`.
        beside: recipes whose bundles are measured beside the first one, in scenario `peers`.
        llama_server: llama.cpp's binary, in scenario `peers`; None leaves it out.
        urls: servers of the same model that run already, in scenario `peers`.
        trace: arrivals that scenario `trace` replays.
        minutes: of scenario `soak`.
        json: where the result goes; None for report/serve.json in the bundle.
    """

    scenarios: tuple[str, ...] = USUAL
    beside: tuple[str, ...] = ()
    llama_server: Path | None = None
    urls: tuple[str, ...] = ()
    trace: Path | None = None
    minutes: float = 30.0
    json: Path | None = None

"""What answers each scenario.

To add one: a module of `scenarios` with a `measure`; its line here and in `scenario_names.py`; a test against
the fake server, where its demand is missed too.
"""

from __future__ import annotations

from kvfold.pipeline.bench.serving.scenarios import (
    abort_requests,
    added_first_token,
    beside_in_process,
    beside_peers,
    cpu_cost,
    end_under_load,
    held_to_schema,
    overload,
    own_work,
    pages_on_disk,
)
from kvfold.pipeline.bench.serving.scenarios.long import soak, trace_replay
from kvfold.pipeline.bench.serving.scenarios.scenario import Measure

SCENARIOS: dict[str, Measure] = {
    "cpu": cpu_cost.measure,
    "own": own_work.measure,
    "first-token": added_first_token.measure,
    "streams": beside_in_process.measure,
    "schemas": held_to_schema.measure,
    "peers": beside_peers.measure,
    "aborts": abort_requests.measure,
    "overload": overload.measure,
    "sigterm": end_under_load.measure,
    "tier": pages_on_disk.measure,
    "soak": soak.measure,
    "trace": trace_replay.measure,
}

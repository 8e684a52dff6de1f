"""The scenarios by name, and those that run when none is named."""

from __future__ import annotations

from kvfold.pipeline.bench.serving.scenarios import (
    abort_requests,
    added_first_token,
    beside_in_process,
    beside_peers,
    cpu_cost,
    end_under_load,
    overload,
    soak,
    trace_replay,
)

SCENARIOS = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        cpu_cost,
        added_first_token,
        beside_in_process,
        beside_peers,
        abort_requests,
        overload,
        end_under_load,
        soak,
        trace_replay,
    )
}
ON_REQUEST = ("soak", "trace")  # too long, or in need of a file
USUAL = tuple(name for name in SCENARIOS if name not in ON_REQUEST)

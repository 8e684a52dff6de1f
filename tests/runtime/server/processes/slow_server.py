"""A server over the synthetic engine whose steps take 10 ms and whose replies never end by themselves.

`python -m tests.runtime.server.processes.slow_server FOLDER PORT [KEYS]`. A token is a byte.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.server.start.run_server import Loaded, run_server
from kvfold.runtime.server.start.server_settings import ServerSettings
from tests.runtime.harness import PLANS, make_llm
from tests.runtime.server.ui.watched import make_app

STEP_SECONDS = 0.01


def main(port: int, keys: Path | None) -> None:
    """Serve until a signal."""
    llm, engine = make_llm(PLANS["hybrid"], pages=256, context=2048)
    execute = engine.execute

    def slow(step: StepInputs) -> np.ndarray:
        time.sleep(STEP_SECONDS)
        return execute(step)

    engine.execute = slow  # type: ignore[method-assign]
    settings = ServerSettings(port=port, keys=keys, drain_seconds=1)
    app, state = make_app(keys)

    def load() -> Loaded:
        return AsyncLLM(llm), None, settings.limits(4)

    run_server(app, state, settings, load)


if __name__ == "__main__":
    main(int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)

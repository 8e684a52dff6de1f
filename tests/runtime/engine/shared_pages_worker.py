"""A process that loads an engine, runs a step, and says how the memory of its weights is held when asked.

Arguments: the engine's folder, its plan's file. It writes a line when ready, waits for one, writes JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.step import DATA_SUFFIX, MODEL_FILE
from kvfold.runtime.bundle import read_record
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from tests.paging import Pager, budget_of

FIELDS = ("Rss", "Pss", "Private_Dirty")


def mapped_bytes(path: Path) -> dict[str, int]:
    """FIELDS of all mappings of a file in this process, in bytes."""
    found, ours = dict.fromkeys(FIELDS, 0), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            ours = line.endswith(str(path))
        elif ours and name[:-1] in found:
            found[name[:-1]] += int(rest[0]) * 1024
    return found


def main(directory: Path, plan: FoldPlan) -> None:
    """Run the engine, and answer."""
    facts = EngineConfig(
        target="cpu", backend="cpu", vocab_size=97, max_context_length=256, fingerprint="test"
    )
    files = EngineFiles(directory, facts, plan)
    engine = OnnxRuntimeEngine.load(files, budget_of(files, 16), threads=2)
    engine.execute(Pager(plan, 16).step({0: list(range(97))}))
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(mapped_bytes(directory / (MODEL_FILE + DATA_SUFFIX))), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(Path(sys.argv[1]), read_record(Path(sys.argv[2]), FoldPlan))

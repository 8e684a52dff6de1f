"""Builds a plan with the C++ plugin in a process of its own and says in JSON what became of it.

`python -m tests.plugins.tensorrt.cpp.cpp_build_worker FOLDER [serialize]`: FOLDER has
model.onnx and profiles.json, and gets result.json and model.plan. What the plugin finds wrong goes to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from kvfold.plugins.cuda.cuda_library import library_path
from tests.plugins.tensorrt.plan_build_worker import Log, build, parse


def main(folder: Path, libraries: list[str]) -> dict[str, Any]:
    """What the parent process is told."""
    log = Log()
    result: dict[str, Any] = {}
    try:
        builder = trt.Builder(log)
        network = parse(log, (folder / "model.onnx").read_bytes(), builder)
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        result["outputs"] = {each.name: (each.dtype.name, tuple(each.shape)) for each in outputs}
        plan = build(builder, network, folder, [80, 89], libraries=libraries)
        (folder / "model.plan").write_bytes(plan)
    except RuntimeError as error:
        result["refused"] = str(error)
    result["log"] = log.lines
    return result


if __name__ == "__main__":
    library, folder = str(library_path()), sys.argv[1]
    if trt.get_plugin_registry().load_library(library) is None:
        raise SystemExit(f"TensorRT-RTX did not load {library}")
    (Path(folder) / "result.json").write_text(
        json.dumps(main(Path(folder), [library] if "serialize" in sys.argv else []))
    )

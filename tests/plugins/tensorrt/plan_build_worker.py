"""Builds a plan in a process of its own and says in JSON what became of it.

`python -m tests.plugins.tensorrt.plan_build_worker FOLDER [no-alias|serialize]`: the folder has model.onnx,
profiles.json (one object of shapes by input for each profile) and kernels/, and gets result.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.plugins.cuda.cuda_library import library_path
from kvfold.plugins.tensorrt.load_plugins import load_plugins, surfacing_errors

ARCHITECTURES = (80, 89)


class Log(trt.ILogger):  # type: ignore[misc]  # the bindings have no annotations
    """Keeps every line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: object, message: str) -> None:
        self.lines.append(message)


def parse(log: Log, model: bytes, builder: Any) -> Any:
    """A strongly typed network."""
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise RuntimeError(parser.get_error(0).desc())
    return network


def build(builder: Any, network: Any, folder: Path, options: Sequence[str]) -> bytes:
    """The plan's bytes; it holds the plugin's library where the options say `serialize`."""
    config = builder.create_builder_config()
    config.plugins_to_serialize = [str(library_path())] if "serialize" in options else []
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, "no-alias" not in options)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(ARCHITECTURES)
    for index, architecture in enumerate(ARCHITECTURES):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{architecture}"), index)
    for shapes in json.loads((folder / "profiles.json").read_text()):
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            name = network.get_input(index).name
            profile.set_shape(name, *shapes[name])
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("no plan")
    return bytes(plan)


def main(folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """What the parent process is told."""
    log = Log()
    load_plugins(trt, folder / "kernels")
    result: dict[str, Any] = {}
    try:
        with surfacing_errors():
            builder = trt.Builder(log)
            network = parse(log, (folder / "model.onnx").read_bytes(), builder)
            outputs = [network.get_output(index) for index in range(network.num_outputs)]
            result["outputs"] = {each.name: (each.dtype.name, tuple(each.shape)) for each in outputs}
            plan = build(builder, network, folder, options)
            (folder / "model.plan").write_bytes(plan)
            result["plan"] = len(plan)
    except KvfoldError as error:
        result["error"] = f"{type(error).__name__}: {error}"
    except RuntimeError as error:
        result["refused"] = str(error)
    result["modules"] = [name for name in ("torch", "triton", "cuda.bindings") if name in sys.modules]
    result["log"] = log.lines
    return result


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "result.json").write_text(json.dumps(main(folder, sys.argv[2:])))

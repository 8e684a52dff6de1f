"""Lets TensorRT's ONNX parser find the library that it opens by a name the wheels do not ship."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path


def environment_for(trt_name: str, folder: Path) -> dict[str, str]:
    """Variables for a process that parses ONNX with `tensorrt` or `tensorrt_rtx`.

    The parser opens `libtensorrt_rtx.so`; the wheel has `libtensorrt_rtx.so.1` only, and without the other
    name the process ends with "terminate called without an active exception". The dynamic linker reads
    LD_LIBRARY_PATH when a process starts, so it must be set for a new one.

    Args:
        trt_name: name of the Python module.
        folder: an existing folder that gets links by those names; keep it while the process runs.

    Returns:
        A copy of this process's environment, with LD_LIBRARY_PATH extended where the module has wheels with
        libraries.
    """
    environment = dict(os.environ)
    libraries = find_spec(f"{trt_name}_libs")
    if libraries is None or not libraries.submodule_search_locations:
        return environment
    for library in Path(libraries.submodule_search_locations[0]).glob("lib*.so.*"):
        link = folder / f"{library.name.partition('.so')[0]}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    paths = (str(folder), environment.get("LD_LIBRARY_PATH", ""))
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in paths if path)
    return environment

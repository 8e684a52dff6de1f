"""The targets as a table of declarations: what each is, why it cannot be built here, how it is built.

A new target is one entry here; recipe, stages, `kvfold doctor` and the bundle's `engine/<target>/`
take it from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from plugins.errors import KernelError

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Target:
    """One backend that an engine can be built for.

    Attributes:
        name: in the recipe, and of the folder `engine/<name>`.
        description: one line for `kvfold doctor`.
        why_not: why this machine cannot build and run it, with the next action; None when it can.
        build: writes the engine's files into an existing folder.
    """

    name: str
    description: str
    why_not: Callable[[], str | None]
    build: Callable[[Workspace, Path], None]


def _why_not_cpu() -> str | None:
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; run `pip install kvfold`"
    from plugins.cpu.library import active_isa

    try:
        active_isa()
    except KernelError as error:
        return str(error)
    return None


def _build_cpu(workspace: Workspace, directory: Path) -> None:
    from pipeline.build_cpu import build_cpu

    build_cpu(workspace, directory)


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="cpu",
            description="ONNX Runtime on the CPU, with kvfold's own attention and int8 kernels",
            why_not=_why_not_cpu,
            build=_build_cpu,
        ),
    )
}

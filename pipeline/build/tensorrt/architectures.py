"""The GPUs that a recipe's plan is for, and everything outside the bundle that decides how it comes out."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.plugins.contract.errors import KernelError, TargetError
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER, EngineConfig

if TYPE_CHECKING:
    from pathlib import Path

    from kvfold.pipeline.recipe.recipe import Recipe

# Distributions whose version changes what is built.
_PACKAGES = ("tensorrt", "tensorrt-rtx-cu13", "triton")


def architectures_of(recipe: Recipe) -> tuple[int, ...]:
    """SM versions: those of the recipe, where its target takes them, else that of this machine's GPU.

    Raises:
        TargetError: none is named and there is no GPU.
    """
    named = TARGETS[recipe.target].takes_architectures
    if named and recipe.tensorrt.architectures:
        return recipe.tensorrt.architectures
    from kvfold.runtime.engine.cuda.driver_calls import found_architecture

    try:
        return (found_architecture(),)
    except TargetError as error:
        advice = "; name the GPUs to build for: --sm 80,86,89,120" if named else ""
        raise TargetError(
            f"target {recipe.target} builds for the GPU of this machine: {error}{advice}"
        ) from error


def why_plan_lacks(recipe: Recipe, root: Path) -> str | None:
    """Why the plan of a bundle's engine does not do: a kernel rotted, or it is for other GPUs."""
    directory = root / "engine" / recipe.target
    try:
        KernelLibrary.load(directory / KERNELS_FOLDER)
    except KernelError as error:  # bytes that rotted on the disk
        return str(error).partition(";")[0]
    facts = EngineConfig.load(directory).tensorrt
    assert facts is not None, "engine.json is that of a plan"
    lacking = [sm for sm in architectures_of(recipe) if sm not in facts.architectures]
    return f"it was not built for SM {', '.join(map(str, lacking))}" if lacking else None


def build_settings(recipe: Recipe) -> object:
    """What decides a plan besides the bundle's files and its GPUs: dials, versions of the builders."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    dials = recipe.tensorrt.model_dump(mode="json", exclude={"architectures"})
    return [dials, recipe.validate_on.prefill_chunk, versions]

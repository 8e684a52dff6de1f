"""Preflight: everything that can be known wrong about a built plan before the library touches it.

TensorRT answers most of these with "could not deserialise"; here each says what to rebuild or install.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.tensorrt.node_form import PLUGIN_VERSION
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER, PLAN_FILE, EngineConfig, TensorRTFacts
from kvfold.runtime.engine.engine_files import EngineFiles


def check_files(files: EngineFiles) -> TensorRTFacts:
    """The plan's facts, once plugin and kernels are those it was built with.

    Raises:
        TargetError: no facts, or another plugin or other kernels than recorded.
        KernelError: the kernel library is unreadable.
    """
    directory, facts = files.directory, files.config.tensorrt
    again = f"build it again: `{_build(files.config)}`"
    if facts is None:
        raise TargetError(
            f"{directory} holds no TensorRT plan but an engine for {files.config.target}; {again}"
        )
    if not (directory / PLAN_FILE).is_file():
        raise TargetError(f"{directory / PLAN_FILE} is missing; {again}")
    if facts.plugin_version != PLUGIN_VERSION:
        raise TargetError(
            f"{directory} was built with version {facts.plugin_version} of the attention plugin, this kvfold "
            f"has {PLUGIN_VERSION}; {again}"
        )
    kernels = KernelLibrary.load(directory / KERNELS_FOLDER)
    if kernels.sha256 != facts.kernels_sha256:
        raise TargetError(
            f"the kernels in {directory / KERNELS_FOLDER} ({kernels.sha256[:12]}...) are not those the plan "
            f"was built with ({facts.kernels_sha256[:12]}...); {again}"
        )
    return facts


def import_library(config: EngineConfig, facts: TensorRTFacts) -> ModuleType:
    """`tensorrt` or `tensorrt_rtx`, in the version that built the plan.

    Raises:
        TargetError: it is not installed, or in another version.
    """
    try:
        library = import_module(facts.library)
    except ImportError as error:
        raise TargetError(
            f"the plan was built by {facts.library} {facts.version}, which is not installed; "
            f"run `pip install 'kvfold[{config.target}]'`"
        ) from error
    if library.__version__ != facts.version:
        raise TargetError(
            f"the plan was built by {facts.library} {facts.version}, installed is {library.__version__}, and "
            f"a plan runs only in the version that built it; build it again: `{_build(config)}`, or install "
            f"{facts.library} {facts.version}"
        )
    return library


def check_gpu(config: EngineConfig, facts: TensorRTFacts, device: Device) -> None:
    """Refuse a GPU that the plan was not built for; raises TargetError."""
    if device.architecture not in facts.architectures:
        built = ", ".join(map(str, facts.architectures))
        raise TargetError(
            f"the GPU is {device.name} with SM {device.architecture}, the plan was built for SM {built}; "
            f"build it again: `{_build(config, device.architecture)}`"
        )


def _build(config: EngineConfig, architecture: int | None = None) -> str:
    """The command that builds the engine again; plain TensorRT builds for the GPU it finds."""
    command = f"kvfold build RECIPE --target {config.target}"
    if config.tensorrt is None or config.tensorrt.library == "tensorrt":
        return command
    built = set(config.tensorrt.architectures) | ({architecture} if architecture else set())
    return f"{command} --sm {','.join(map(str, sorted(built)))}"

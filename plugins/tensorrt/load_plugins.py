"""The one entry for builder and runtime: makes PagedAttention known to a TensorRT library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.tensorrt.creator import Creator, creator_class
from kvfold.plugins.tensorrt.host import Host
from kvfold.plugins.tensorrt.node_form import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION

_CREATORS: dict[ModuleType, Creator] = {}


def load_plugins(
    trt: ModuleType, kernels: KernelLibrary, directory: Path, architectures: Sequence[int]
) -> Host:
    """Register the plugin with `trt` on the first call; plugins that it makes from now on use these kernels.

    Parse and build, or deserialise, inside the host's `surfacing_errors()`.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`, imported.
        kernels: of the engine.
        directory: where their cubins lie.
        architectures: SM versions that the engine must run on: of the plan, or of the GPU at hand.

    Raises:
        KernelError: another library has registered the plugin already.
    """
    host = Host(trt, kernels, directory, architectures)
    creator = _CREATORS.get(trt)
    if creator is not None:
        creator.host = host
        return host
    creator = creator_class(trt)(host)
    if not trt.get_plugin_registry().register_creator(creator, PLUGIN_NAMESPACE):
        raise KernelError(
            f"{trt.__name__} has a plugin {PLUGIN_NAMESPACE}::{PLUGIN_NAME} {PLUGIN_VERSION} already, of "
            "another library; load either the C++ library or the Python plugin, not both, into one process"
        )
    _CREATORS[trt] = creator
    return host

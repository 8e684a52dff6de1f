"""Launches prebuilt cubins through the CUDA driver: no torch, no Triton, no CUDA runtime.

The tests hold these calls against a stand-in for libcuda, through NVIDIA's own bindings; that a GPU runs them
is for `make gpu-check`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import AttentionSpec
from kvfold.plugins.cuda.calls import Launch, resolve
from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary
from kvfold.plugins.cuda.launches import Shapes

WARP = 32
# More than this a kernel must ask for (CUDA C++ Programming Guide, compute capabilities).
STATIC_SHARED_BYTES = 48 * 1024
_C_TYPES = {"pointer": ctypes.c_void_p, "int32": ctypes.c_int32, "float32": ctypes.c_float}
_SCRATCH = (("pointer", 0), ("pointer", 0))  # Triton's global and profile scratch, unused by our kernels


class Launcher:
    """Kernels of one engine in the driver; each cubin is loaded once into each CUDA context.

    That happens when it is needed, or in `load_all` before, as loading is not allowed while a CUDA graph is
    captured. Modules stay loaded as long as their context lives.

    Args:
        kernels: of the engine.
        directory: where their cubins lie.
    """

    def __init__(self, kernels: KernelLibrary, directory: Path) -> None:
        self._kernels = kernels
        self._directory = directory
        self._architectures: dict[int, int] = {}
        self._functions: dict[tuple[int, str], Any] = {}

    def launch(
        self, spec: AttentionSpec, shapes: Shapes, buffers: Mapping[str, int], workspace: int, stream: int
    ) -> None:
        """Put one call of the op on a stream of the current context.

        Args:
            spec: the node.
            shapes: of the call.
            buffers: device addresses by schema name, as `calls.resolve` takes them.
            workspace: device address of the scratch memory.
            stream: handle of the CUDA stream.

        Raises:
            KernelError: the GPU has no kernel, or the driver refused; the message has its reason.
        """
        context = _current_context()
        architecture = self._architecture(context)
        for launch in resolve(self._kernels, architecture, spec, shapes, buffers, workspace):
            self._launch(self._function(context, launch.kernel), launch, stream)

    def load_all(self) -> None:
        """Load every kernel that the GPU of the current context may need.

        Raises:
            KernelError: there is no context, or the driver refused a cubin.
        """
        context = _current_context()
        architecture = self._architecture(context)
        for variant in dict.fromkeys(kernel.variant for kernel in self._kernels.kernels):
            self._function(context, self._kernels.find(variant, architecture))

    def _launch(self, function: Any, launch: Launch, stream: int) -> None:
        arguments = (*launch.arguments, *_SCRATCH)
        values = tuple(value for _, value in arguments)
        types = tuple(_C_TYPES[kind] for kind, _ in arguments)
        block = (WARP * launch.kernel.num_warps, 1, 1)
        shared = launch.kernel.shared_bytes
        _call(
            "cuLaunchKernel", function, *launch.grid, *block, shared, stream, (values, types), 0,
            what=f"kernel {launch.kernel.variant}, grid {launch.grid}",
        )  # fmt: skip

    def _architecture(self, context: int) -> int:
        if context not in self._architectures:
            device = _call("cuCtxGetDevice")
            names = _driver().CUdevice_attribute
            major, minor = (
                _call("cuDeviceGetAttribute", attribute, device)
                for attribute in (
                    names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                    names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                )
            )
            self._architectures[context] = 10 * major + minor
        return self._architectures[context]

    def _function(self, context: int, kernel: CompiledKernel) -> Any:
        key = context, kernel.file
        if key not in self._functions:
            path = self._directory / kernel.file
            module = _call("cuModuleLoadData", path.read_bytes(), what=str(path))
            function = _call("cuModuleGetFunction", module, kernel.symbol.encode(), what=str(path))
            if kernel.shared_bytes > STATIC_SHARED_BYTES:
                names = _driver().CUfunction_attribute
                attribute = names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _call("cuFuncSetAttribute", function, attribute, kernel.shared_bytes, what=str(path))
            self._functions[key] = function
        return self._functions[key]


def _driver() -> Any:
    """NVIDIA's bindings, loaded at the first launch: a build needs no driver."""
    from cuda.bindings import driver

    return driver


def _current_context() -> int:
    """Id of the CUDA context of this thread: a new one may have the address of one that was destroyed."""
    current = _call("cuCtxGetCurrent")
    if not int(current):
        raise KernelError("attention was called without a CUDA context; TensorRT makes one")
    return int(_call("cuCtxGetId", current))


def _call(name: str, *arguments: Any, what: str = "") -> Any:
    """Call the driver: its result after the status, or a KernelError with the status in words."""
    status, *results = getattr(_driver(), name)(*arguments)
    if int(status):
        about = f" ({what})" if what else ""
        raise KernelError(f"the CUDA driver's {name} failed{about}: {_meaning(status)}")
    return results[0] if results else None


def _meaning(status: Any) -> str:
    texts = []
    for name in ("cuGetErrorName", "cuGetErrorString"):
        unknown, text = getattr(_driver(), name)(status)
        texts.append(f"error {int(status)}" if int(unknown) else text.decode())
    return ": ".join(texts)

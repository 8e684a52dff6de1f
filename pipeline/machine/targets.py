"""The targets as a table: what each is, and why it cannot be built, or not be run, on this machine.

The only list of them: recipe, command line, stages, `kvfold doctor` and the bundle's `engine/<target>/` take
them from here. Building and running are asked apart: a TensorRT-RTX plan is built on any Linux machine and
runs on an NVIDIA GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvfold.pipeline.machine.extras import EXPORT, install_command, is_installed
from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import ARCHITECTURES

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import KvDtype
    from kvfold.runtime.engine.engine_config import Backend, TensorRTLibrary


@dataclass(frozen=True)
class Target:
    """What an engine can be built for.

    Attributes:
        name: in the recipe, and of the folder `engine/<name>`.
        description: one line for `kvfold doctor`.
        backend: what builds it: the stage in `pipeline/stages/engine/build_<backend>.py`; what runs it.
        why_not_build: why this machine cannot build it, with the next action; None when it can.
        why_not_run: the same for running what was built.
        kv_dtypes: types of caches that its attention reads; of the float ones, the activations' own.
        reads_int4: its linears may have weights in 4 bits.
        library: the module of TensorRT that builds and runs its plans; None for ONNX Runtime.
        takes_architectures: it is built for GPUs that are named; none of them needs to be here.
        gpus: SM versions that its library is made for; empty where it runs on every GPU that kvfold's kernels
            know, or on none.
    """

    name: str
    description: str
    backend: Backend
    why_not_build: Callable[[], str | None]
    why_not_run: Callable[[], str | None]
    kv_dtypes: tuple[KvDtype, ...] = ("int8", "float16", "bfloat16")
    reads_int4: bool = False
    library: TensorRTLibrary | None = None
    takes_architectures: bool = False
    gpus: tuple[int, ...] = ()

    def why_not_on(self, architecture: int) -> str | None:
        """Why a GPU of this SM version cannot run it; None when it can."""
        known = self.gpus or ARCHITECTURES
        if architecture in known:
            return None
        return f"it runs on SM {', '.join(map(str, known))}"


def _why_not_cpu() -> str | None:
    if not is_installed("onnxruntime"):
        return f"onnxruntime is not installed; run `{install_command()}`"
    from kvfold.plugins.cpu.cpu_library import active_isa

    try:
        active_isa()
    except KernelError as error:
        return str(error)
    return None


def _why_not_build_cuda() -> str | None:
    if not is_installed("triton"):
        return f"triton is not installed; run `{install_command(EXPORT, 'cuda')}`"
    return _why_no_library()


def _why_no_library() -> str | None:
    from kvfold.plugins.cuda.cuda_library import library_path

    try:
        library_path()
    except KernelError as error:
        return str(error)
    return None


def _why_not_run_cuda() -> str | None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            f"this onnxruntime has no CUDA provider; run `{install_command('cuda')}` in place of onnxruntime"
        )
    if not is_installed("cuda.bindings"):
        return f"cuda.bindings not installed; run `{install_command('cuda')}`"
    return _why_no_library() or _why_no_gpu()


def _why_no_gpu() -> str | None:
    from kvfold.pipeline.machine.gpus import open_nvml

    with open_nvml() as no_gpu:
        return f"{no_gpu}; run on a machine with an NVIDIA GPU" if no_gpu else None


def _why_not_build_tensorrt(module: str, extra: str) -> str | None:
    missing = [name for name in (module, "triton", "polygraphy") if not is_installed(name)]
    if missing:
        return f"{' and '.join(missing)} not installed; run `{install_command(EXPORT, extra)}`"
    return None


def _why_not_run_tensorrt(module: str, extra: str) -> str | None:
    missing = [name for name in (module, "cuda.bindings") if not is_installed(name)]
    if missing:
        return f"{' and '.join(missing)} not installed; run `{install_command(extra)}`"
    return _why_no_gpu()


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="cpu",
            description="ONNX Runtime on the CPU, with kvfold's own attention, int8 and int4 kernels",
            backend="cpu",
            why_not_build=_why_not_cpu,
            why_not_run=_why_not_cpu,
            kv_dtypes=("int8", "float32"),
            reads_int4=True,
        ),
        Target(
            name="cuda",
            description="ONNX Runtime on an NVIDIA GPU with kvfold's attention; built without one for many",
            backend="cuda",
            why_not_build=_why_not_build_cuda,
            why_not_run=_why_not_run_cuda,
            reads_int4=True,
            takes_architectures=True,
        ),
        Target(
            name="tensorrt",
            description="TensorRT 10.14 or newer with kvfold's plugin, built for the GPU of this machine",
            backend="tensorrt",
            why_not_build=lambda: (
                _why_not_build_tensorrt("tensorrt", "tensorrt")
                or _why_not_run_tensorrt("tensorrt", "tensorrt")
            ),
            why_not_run=lambda: _why_not_run_tensorrt("tensorrt", "tensorrt"),
            library="tensorrt",
        ),
        Target(
            name="tensorrt-rtx",
            description="TensorRT-RTX with kvfold's plugin; built without a GPU for the SM versions named",
            backend="tensorrt",
            why_not_build=lambda: _why_not_build_tensorrt("tensorrt_rtx", "tensorrt-rtx"),
            why_not_run=lambda: _why_not_run_tensorrt("tensorrt_rtx", "tensorrt-rtx"),
            library="tensorrt_rtx",
            takes_architectures=True,
            gpus=(75, 86, 89, 120, 121),  # NVIDIA's support matrix of TensorRT-RTX 1.5
        ),
    )
}

"""What the CUDA driver's errors mean to a user, and what to do next."""

from __future__ import annotations

from kvfold.plugins.contract.errors import CapacityError, KvfoldError, TargetError

NO_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
_OTHER = "`kvfold doctor` shows what this machine has"
_TOO_OLD = "the driver is too old, or not the one of this GPU: install NVIDIA's newest for it"
_LOST = (
    "the GPU is lost to this process: start it again; if that happens again, look for Xid errors in the "
    "kernel's log (`dmesg`) and at `nvidia-smi`"
)
ACTIONS = {
    NO_MEMORY: "the GPU has no memory left: end other programs on it, or lower kv_cache_bytes",
    "CUDA_ERROR_NO_DEVICE": (
        "the driver sees no GPU: CUDA_VISIBLE_DEVICES may hide it, or a container was started without one "
        "(`docker run --gpus all`)"
    ),
    "CUDA_ERROR_DEVICE_UNAVAILABLE": (
        "another process has the GPU to itself: end it, or allow several (`nvidia-smi -c DEFAULT`)"
    ),
    "CUDA_ERROR_NO_BINARY_FOR_GPU": (
        "the engine's kernels were not made for this GPU: build it again with its SM version (`--sm`)"
    ),
    "cudaErrorNoKernelImageForDevice": (
        "the library's own kernels were not made for this GPU: install an onnxruntime-gpu that supports it, "
        "or run another target (`tensorrt-rtx`, `cpu`)"
    ),
    **dict.fromkeys(
        (
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            "cudaErrorInsufficientDriver",
        ),
        _TOO_OLD,
    ),
    **dict.fromkeys(
        (
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            "CUDA_ERROR_HARDWARE_STACK_ERROR",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "CUDA_ERROR_ILLEGAL_INSTRUCTION",
            "CUDA_ERROR_LAUNCH_FAILED",
            "CUDA_ERROR_LAUNCH_TIMEOUT",
            "CUDA_ERROR_UNKNOWN",
        ),
        _LOST,
    ),
}
# Their numbers, which `cudaError_t` of the runtime library has too, and those that libraries alone give.
NUMBERS = {
    2: NO_MEMORY,
    35: "cudaErrorInsufficientDriver",
    46: "CUDA_ERROR_DEVICE_UNAVAILABLE",
    100: "CUDA_ERROR_NO_DEVICE",
    209: "cudaErrorNoKernelImageForDevice",
    214: "CUDA_ERROR_ECC_UNCORRECTABLE",
    222: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    702: "CUDA_ERROR_LAUNCH_TIMEOUT",
    714: "CUDA_ERROR_HARDWARE_STACK_ERROR",
    715: "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    719: "CUDA_ERROR_LAUNCH_FAILED",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    804: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    999: "CUDA_ERROR_UNKNOWN",
}


def driver_error(function: str, status: str) -> KvfoldError:
    """The error to raise where a function of the driver's gave this status.

    Args:
        function: such as `cuMemAlloc`.
        status: name in `CUresult`.

    Returns:
        As `gpu_error`.
    """
    return gpu_error(f"the CUDA driver's {function} failed with {status}", status)


def gpu_error(failed: str, status: str) -> KvfoldError:
    """The error to raise where a GPU gave this status to whoever asked.

    Args:
        failed: what did, and who says so.
        status: name in `CUresult`; another one is no more than a failure.

    Returns:
        A CapacityError where memory ran out, else a TargetError.
    """
    kind = CapacityError if status == NO_MEMORY else TargetError
    return kind(f"{failed}; {ACTIONS.get(status, _OTHER)}")


def missing_function(function: str, reason: RuntimeError) -> TargetError:
    """The error where cuda-python finds no driver, or one that does not have the function.

    Args:
        function: that was called.
        reason: what cuda-python raised.
    """
    if function == "cuInit":
        return TargetError(
            f"no NVIDIA driver: {reason} Install it, or run another target of the bundle (cpu)"
        )
    return TargetError(f"the NVIDIA driver has no {function}: {reason} {_TOO_OLD}")

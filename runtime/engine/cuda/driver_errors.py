"""What the CUDA driver's errors mean to a user, and what to do next."""

from __future__ import annotations

from kvfold.plugins.contract.errors import CapacityError, KvfoldError, TargetError

_NO_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
_OTHER = "`kvfold doctor` shows what this machine has"
_TOO_OLD = "the driver is too old, or not the one of this GPU: install NVIDIA's newest for it"
_LOST = (
    "the GPU is lost to this process: start it again; if that happens again, look for Xid errors in the "
    "kernel's log (`dmesg`) and at `nvidia-smi`"
)
ACTIONS = {
    _NO_MEMORY: "the GPU has no memory left: end other programs on it, or lower kv_cache_bytes",
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
    **dict.fromkeys(
        (
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
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


def driver_error(function: str, status: str) -> KvfoldError:
    """The error to raise where a function of the driver's gave this status.

    Args:
        function: such as `cuMemAlloc`.
        status: name in `CUresult`.

    Returns:
        A CapacityError where memory ran out, else a TargetError.
    """
    kind = CapacityError if status == _NO_MEMORY else TargetError
    return kind(f"the CUDA driver's {function} failed with {status}; {ACTIONS.get(status, _OTHER)}")


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

"""What ONNX Runtime says where a device failed it, as a typed error.

Its exceptions have several unrelated types, so their texts are what tells them apart. They are those of C++'s
`new` and of its `core/framework/bfc_arena.cc` where memory ran out, of its `core/providers/cuda/cuda_call.cc`
for CUDA and its libraries, and of kvfold's own op, `plugins/cuda/cpp/cuda_driver.cc`.
"""

from __future__ import annotations

import re

from kvfold.plugins.contract.errors import CapacityError, KvfoldError
from kvfold.runtime.engine.cuda.driver_errors import NO_MEMORY, NUMBERS, gpu_error

_NO_MEMORY = re.compile(
    r"Failed to allocate memory for requested buffer|Available memory of \d+ is smaller than requested"
    r"|CU(BLAS|DNN)_STATUS_\w*ALLOC\w*_FAILED"
)
# C++'s `new`, which gives the host's memory whatever the session computes on: GCC's words, then MSVC's.
_NO_HOST_MEMORY = re.compile(r"\bstd::bad_alloc\b|\bbad allocation\b")
_OF_OUR_OP = re.compile(r"\bCUDA_ERROR_[A-Z_]+")
_OF_CUDA = re.compile(r"\bCUDA failure (\d+):")
_OF_ITS_LIBRARIES = re.compile(r"\bCU[A-Z]+ failure \d+:")
_HOST_MEMORY = "the machine has no memory left: end other programs on it, or lower max_num_batched_tokens"


def words_of(error: Exception) -> str:
    """What an exception of ONNX Runtime's says, for a longer sentence."""
    return str(error).strip("; \n")


def device_error(said: str, on_gpu: bool) -> KvfoldError | None:
    """The error to raise where a device failed, and not what was to run on it.

    Args:
        said: what failed, and ONNX Runtime's words of it.
        on_gpu: where the session computes.

    Returns:
        A CapacityError where memory ran out, a TargetError where the GPU or its driver failed; None where
        ONNX Runtime complains of neither.
    """
    if _NO_HOST_MEMORY.search(said):
        return CapacityError(f"{said}; {_HOST_MEMORY}")
    if _NO_MEMORY.search(said):
        return gpu_error(said, NO_MEMORY) if on_gpu else CapacityError(f"{said}; {_HOST_MEMORY}")
    if found := _OF_OUR_OP.search(said):
        return gpu_error(said, found[0])
    if found := _OF_CUDA.search(said):
        return gpu_error(said, NUMBERS.get(int(found[1]), found[0]))
    if found := _OF_ITS_LIBRARIES.search(said):
        return gpu_error(said, found[0])
    return None

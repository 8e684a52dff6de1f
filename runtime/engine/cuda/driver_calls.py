"""The CUDA driver through cuda-python: how to call it, and what it says of a GPU without a context."""

from __future__ import annotations

from typing import Any

from kvfold.plugins.contract.errors import TargetError
from kvfold.runtime.engine.cuda.driver_errors import driver_error, missing_function

ORDINAL = 0


def load_driver() -> Any:
    """`cuda.bindings.driver`.

    Raises:
        TargetError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise TargetError("cuda-python is not installed; run `pip install cuda-bindings`") from error
    return driver


def call_driver(driver: Any, function: str, *arguments: Any) -> Any:
    """One driver call: its single result, a tuple of several, or None.

    Raises:
        CapacityError: the GPU has no memory left.
        TargetError: there is no driver, or it is too old, or it failed otherwise.
    """
    try:
        status, *results = getattr(driver, function)(*arguments)
    except RuntimeError as error:  # the binding found no driver to load, or none that has the function
        raise missing_function(function, error) from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise driver_error(function, status.name)
    return results[0] if len(results) == 1 else tuple(results) or None


def first_gpu(driver: Any) -> Any:
    """Handle of the first visible GPU; errors as of `call_driver`."""
    call_driver(driver, "cuInit", 0)
    return call_driver(driver, "cuDeviceGet", ORDINAL)


def name_of(driver: Any, gpu: Any) -> str:
    """Product name of a GPU."""
    name: bytes = call_driver(driver, "cuDeviceGetName", 128, gpu)
    return name.partition(b"\0")[0].decode()


def architecture_of(driver: Any, gpu: Any) -> int:
    """SM version of a GPU, 10 * major + minor; no context is opened on it."""
    attributes = driver.CUdevice_attribute
    major, minor = (
        int(call_driver(driver, "cuDeviceGetAttribute", attribute, gpu))
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return 10 * major + minor


def found_architecture() -> int:
    """SM version of the GPU that an engine would run on here; costs it no memory, and no other program.

    Raises:
        TargetError: cuda-python, the driver or a GPU is missing.
    """
    driver = load_driver()
    return architecture_of(driver, first_gpu(driver))

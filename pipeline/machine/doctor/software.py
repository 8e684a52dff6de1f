"""Checks of what is installed: Python, compiler, kernel library, ONNX Runtime, torch, TensorRT."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

from kvfold.pipeline.machine.doctor.finding import Finding
from kvfold.pipeline.machine.extras import EXPORT, install_command, is_installed
from kvfold.pipeline.machine.targets import Target
from kvfold.plugins.contract.errors import KernelError


def check_python() -> Finding:
    """Which Python this is; an older one than 3.11 could not have installed kvfold."""
    return Finding("Python", "ok", f"{platform.python_version()} in {sys.prefix}")


def check_compiler() -> Finding:
    """A C++17 compiler builds the kernels when the package is installed."""
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        action = (
            "Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install"
        )
        return Finding("compiler", "problem", "no g++ or clang++ on the path", action)
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return Finding("compiler", "ok", result.stdout.splitlines()[0] if result.stdout else compiler)


def check_kernels() -> Finding:
    """Whether the compiled kernels load, and which instruction set they use."""
    from kvfold.plugins.cpu.cpu_library import active_isa, library_path, supported_isas

    try:
        detail = f"{library_path().name} uses {active_isa()} (has {', '.join(supported_isas())})"
    except KernelError as error:
        what, _, action = str(error).partition("; ")
        return Finding("CPU kernels", "problem", what, action)
    return Finding("CPU kernels", "ok", detail)


def check_onnxruntime() -> Finding:
    """Version, providers, and whether it accepts the kernel library."""
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("ONNX Runtime", "problem", str(error), "pip install 'onnxruntime>=1.31'")
    detail = f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"
    from kvfold.plugins.cpu.cpu_library import register_ops

    try:
        register_ops(onnxruntime.SessionOptions())
    except KernelError as error:
        what, _, action = str(error).partition("; ")
        return Finding("ONNX Runtime", "problem", f"{detail}; {what}", action)
    return Finding("ONNX Runtime", "ok", f"{detail}; accepts kvfold's kernels")


def check_torch() -> Finding:
    """torch exports; running needs none of it. It is not imported, which takes seconds."""
    if not is_installed("torch"):
        action = f"to export: {install_command(EXPORT)}; to run a built bundle it is not needed"
        return Finding("torch", "absent", "not installed", action)
    return Finding("torch", "ok", version("torch"))


def check_library(target: Target) -> Finding:
    """Whether the library of a target's plans imports; a broken installation is told apart from none."""
    assert target.library is not None
    try:
        loaded = import_module(target.library)
    except ModuleNotFoundError:
        action = f"for `--target {target.name}`: {install_command(EXPORT, target.name)}"
        return Finding(target.library, "absent", "not installed", action)
    except (ImportError, OSError) as error:  # OSError: one of its shared libraries is missing
        detail, action = f"installed but does not import: {error}", f"reinstall kvfold[{target.name}]"
        return Finding(target.library, "problem", detail, action)
    return Finding(target.library, "ok", str(getattr(loaded, "__version__", "unknown version")))

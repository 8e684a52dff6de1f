"""Compiles the libraries for CPUs and GPUs and tags the wheel; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PLUGINS = Path("src/kvfold/plugins")
# Of each library. That for GPUs opens the CUDA driver when it runs, and takes no header of NVIDIA's.
FOLDERS = {"cpu": ("cpu", "onnxruntime"), "cuda": ("cuda", "tensorrt", "onnxruntime")}
# Kernels round products and sums one by one, as the PyTorch reference does: no contraction.
FLAGS = [
    *("-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),  # no value changes by the last two
]
ISA_FLAGS = {
    "_avx2.cc": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512vnni.cc": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC bug 105593, in its own intrinsics
    ],
}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def find(library: str, pattern: str) -> list[str]:
    """Files of a library, in order."""
    return sorted(str(path) for folder in FOLDERS[library] for path in (PLUGINS / folder).rglob(pattern))


def isa_flags(source: str) -> list[str] | None:
    """Extra flags of one source file; None where the machine cannot have its instruction set."""
    for suffix, flags in ISA_FLAGS.items():
        if source.endswith(suffix):
            return flags if IS_X86 else None
    return []


class BuildKernels(build_ext):
    """Builds a plain shared library (no Python module), each file with its own instruction set."""

    def get_ext_filename(self, fullname: str) -> str:
        """e.g. plugins/cpu/libkvfold_cpu.so, without Python's ABI tag: Python does not import it."""
        *folders, name = fullname.split(".")
        return str(Path(*folders, f"lib{name}.so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None: there is no PyInit function; the sources mark what they export."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Compile each source with its flags, as many at once as there are cores, and link them."""
        target = Path(self.get_ext_fullpath(ext.name))
        compiler: Any = self.compiler
        # The largest takes as long as the others together.
        sources = sorted(ext.sources, key=lambda source: Path(source).stat().st_size, reverse=True)
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = pool.map(lambda source: self.compile(source, ext.depends), sources)
                objects = sorted(name for names in compiled for name in names)
            compiler.link_shared_object(objects, str(target), libraries=ext.libraries, target_lang="c++")
        except Exception as error:
            raise SystemExit(
                f"kvfold's {target.name} did not compile: {error}\n"
                "It needs a C++17 compiler: g++ 9 or newer (Debian, Ubuntu: apt-get install g++; "
                "Fedora: dnf install gcc-c++) or clang (macOS: xcode-select --install)."
            ) from error

    def compile(self, source: str, headers: list[str]) -> list[str]:
        """The object file of one source, compiled if it is older than the source or a header."""
        flags = isa_flags(source)
        if flags is None:
            return []
        compiler: Any = self.compiler
        [built] = compiler.object_filenames([source], output_dir=self.build_temp)
        inputs = [Path(source), *map(Path, headers), Path(__file__)]
        newest = max(path.stat().st_mtime for path in inputs)
        if self.force or not Path(built).exists() or Path(built).stat().st_mtime < newest:
            compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=[str(PLUGINS)],
                extra_postargs=[*FLAGS, *flags],
            )
        return [built]


class TagWheel(bdist_wheel):
    """A wheel for any Python 3 of one platform: nothing in it is bound to an interpreter's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        """The platform of a compiled wheel, with no Python version and no ABI."""
        *_, platform_tag = super().get_tag()
        return "py3", "none", platform_tag


setup(
    ext_modules=[
        Extension(
            f"kvfold.plugins.{library}.kvfold_{library}",
            sources=find(library, "*.cc"),
            depends=find(library, "*.h"),
            libraries=["dl"],
        )
        for library in FOLDERS
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": TagWheel},
)

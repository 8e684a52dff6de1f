"""Compiled kernels on disk: `kernels.json` beside one cubin per variant and architecture.

Everything that a launcher must know stands in the JSON. `kernels.bin` has the same table and the cubins in a
form that C++ reads without a parser (`cpp/open_kernels.cc`): a line that says what it is, then numbers of 32
bits, little-endian, and texts and lists that begin with their length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.contract.fold_plan import describe_errors
from kvfold.plugins.contract.record import Record

KERNELS_FILE = "kernels.json"
OPENED_FILE = "kernels.bin"
_MAGIC = b"kvfold kernels 1\n"
# What `kernels.bin` has 32 bits for.
Number = Annotated[int, Field(ge=0, lt=1 << 32)]


class CompiledKernel(Record):
    """One cubin.

    Attributes:
        variant: name of its `Variant`.
        architecture: SM version it was compiled for, 10 * major + minor; see `runs_on`.
        symbol: name of the entry point.
        file: cubin, relative to `kernels.json`.
        sha256: of the cubin.
        num_warps: warps of a block; a block has 32 * num_warps threads.
        shared_bytes: dynamic shared memory of a block.
        registers: per thread.
        spill_bytes: local memory per thread that registers spilled to.
        arguments: names of `plugins.cuda.launches` in the order of the kernel's parameters. After them the
            kernel takes two null pointers: Triton's global and profile scratch.
        grid: names of `plugins.cuda.launches`, three of them.
        constants: tile sizes that the launcher must know (`tokens_per_tile`, `split_keys`), by name.
    """

    variant: str
    architecture: Number
    symbol: str
    file: str
    sha256: str
    num_warps: Number
    shared_bytes: Number
    registers: Number
    spill_bytes: Number
    arguments: tuple[str, ...]
    grid: tuple[str, str, str]
    constants: dict[str, Number] = Field(default_factory=dict)


class KernelLibrary(Record):
    """The kernels of one engine.

    Attributes:
        triton: version that compiled them.
        kernels: all variants for all architectures.
    """

    triton: str
    kernels: tuple[CompiledKernel, ...]

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `kernels.json`, and check every cubin against its sha256 and `kernels.bin` against both.

        Raises:
            KernelError: a file is missing, unreadable or not the recorded one.
        """
        again = "build the engine again with `kvfold build`"
        try:
            library = cls.model_validate_json((directory / KERNELS_FILE).read_bytes())
            cubins = [(directory / kernel.file).read_bytes() for kernel in library.kernels]
            for kernel, cubin in zip(library.kernels, cubins, strict=True):
                if hashlib.sha256(cubin).hexdigest() != kernel.sha256:
                    raise KernelError(f"{directory / kernel.file} is not the recorded kernel; {again}")
            if (directory / OPENED_FILE).read_bytes() != library._opened(cubins):
                raise KernelError(f"{directory / OPENED_FILE} does not hold the recorded kernels; {again}")
        except OSError as error:
            raise KernelError(f"{error.filename} cannot be read ({error.strerror}); {again}") from error
        except ValidationError as error:
            raise KernelError(f"{describe_errors(str(directory / KERNELS_FILE), error)}; {again}") from error
        return library

    def save(self, directory: Path) -> None:
        """Write `kernels.json` and `kernels.bin`; the cubins are there already."""
        (directory / KERNELS_FILE).write_text(self.model_dump_json(indent=1) + "\n")
        cubins = [(directory / kernel.file).read_bytes() for kernel in self.kernels]
        (directory / OPENED_FILE).write_bytes(self._opened(cubins))

    def _opened(self, cubins: Iterable[bytes]) -> bytes:
        """The content of `kernels.bin`."""
        entries = [_entry(kernel, cubin) for kernel, cubin in zip(self.kernels, cubins, strict=True)]
        return _MAGIC + _text(self.sha256) + _list(entries)

    @cached_property
    def sha256(self) -> str:
        """Identifies all kernels together."""
        return hashlib.sha256("".join(sorted(kernel.sha256 for kernel in self.kernels)).encode()).hexdigest()

    @property
    def architectures(self) -> tuple[int, ...]:
        """Every architecture that some kernel was compiled for."""
        return tuple(sorted({kernel.architecture for kernel in self.kernels}))

    def find(self, variant: str, architecture: int) -> CompiledKernel:
        """The kernel for a GPU: of its own architecture, else of the nearest that runs on it.

        Raises:
            KernelError: there is none; the message names what was compiled.
        """
        return find_kernel(self.kernels, variant, architecture)


def runs_on(compiled: int, architecture: int) -> bool:
    """Whether a cubin for one architecture runs on a GPU of another.

    Later minors of a major run it, but from SM 90 on Triton uses instructions of the very architecture
    (sm_90a, sm_120a), whose code runs nowhere else.
    """
    if architecture >= 90:
        return compiled == architecture
    return compiled // 10 == architecture // 10 and compiled <= architecture


def find_kernel(kernels: Iterable[CompiledKernel], variant: str, architecture: int) -> CompiledKernel:
    """See `KernelLibrary.find`."""
    of_variant = [kernel for kernel in kernels if kernel.variant == variant]
    usable = [kernel for kernel in of_variant if runs_on(kernel.architecture, architecture)]
    if not usable:
        compiled = ", ".join(str(kernel.architecture) for kernel in of_variant) or "no architecture"
        raise KernelError(
            f"there is no attention kernel {variant} for SM {architecture} (compiled for {compiled}); "
            f"build the engine with SM {architecture} among its architectures"
        )
    return max(usable, key=lambda kernel: kernel.architecture)


def _entry(kernel: CompiledKernel, cubin: bytes) -> bytes:
    constants = [_text(name) + _number(value) for name, value in kernel.constants.items()]
    return b"".join(
        (
            *(_text(kernel.variant), _number(kernel.architecture), _text(kernel.symbol)),
            *(_number(kernel.num_warps), _number(kernel.shared_bytes), _list(map(_text, kernel.arguments))),
            *(*map(_text, kernel.grid), _list(constants), _number(len(cubin)), cubin),
        )
    )


def _number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _text(value: str) -> bytes:
    return _number(len(value.encode())) + value.encode()


def _list(entries: Iterable[bytes]) -> bytes:
    found = list(entries)
    return _number(len(found)) + b"".join(found)

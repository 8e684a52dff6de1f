"""Turns an engine's kernels into sources of the C++ library: their table, and an assembler file of cubins.

CMake runs it as a module with the arguments KERNELS and OUTPUT, so that C++ parses no JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary

TABLE_FILE = "embedded_kernels.cc"
CUBINS_FILE = "embedded_cubins.S"
_TABLE = """\
// Written by embed_kernels.py.
#include "cuda/cpp/kernel_library.h"

namespace kvfold {{
namespace {{

extern "C" {{
{cubins}
}}
{arguments}
constexpr CompiledKernel kKernels[] = {{
{kernels}
}};

}}  // namespace

const KernelLibrary kEmbeddedKernels = {{kKernels, sizeof kKernels / sizeof kKernels[0], "{sha256}"}};

}}  // namespace kvfold
"""
_CUBIN = """\
    .hidden {label}
    .globl {label}
    .balign 64
{label}:
    .incbin {path}
"""


def embed(kernels: Path, output: Path) -> None:
    """Write both sources.

    Args:
        kernels: folder of `kernels.json` and its cubins; the assembler reads the cubins where they lie.
        output: an existing folder.

    Raises:
        KernelError: a file of the kernels is missing or not the recorded one.
    """
    library = KernelLibrary.load(kernels)
    files = {kernel.file: f"kvfold_cubin_{index}" for index, kernel in enumerate(library.kernels)}
    arguments = {kernel.arguments: f"kArguments{index}" for index, kernel in enumerate(library.kernels)}
    table = _TABLE.format(
        cubins="\n".join(f"extern const unsigned char {label}[];" for label in files.values()),
        arguments="\n".join(
            f"constexpr const char* {name}[] = {{{_strings(names)}, nullptr}};"
            for names, name in arguments.items()
        ),
        kernels="\n".join(_row(kernel, files, arguments) for kernel in library.kernels),
        sha256=library.sha256,
    )
    cubins = [
        _CUBIN.format(label=label, path=json.dumps(str((kernels / file).resolve())))
        for file, label in files.items()
    ]
    (output / TABLE_FILE).write_text(table)
    # The last section says that nothing here needs an executable stack.
    (output / CUBINS_FILE).write_text(
        "    .section .rodata\n" + "".join(cubins) + '    .section .note.GNU-stack,"",%progbits\n'
    )


def _row(kernel: CompiledKernel, files: dict[str, str], arguments: dict[tuple[str, ...], str]) -> str:
    fields = (
        *(json.dumps(kernel.variant), str(kernel.architecture), json.dumps(kernel.symbol)),
        *(files[kernel.file], str(kernel.num_warps), str(kernel.shared_bytes), arguments[kernel.arguments]),
        f"{{{_strings(kernel.grid)}}}",
        *(str(kernel.constants.get(name, 0)) for name in ("tokens_per_tile", "split_keys")),
    )
    return f"    {{{', '.join(fields)}}},"


def _strings(names: tuple[str, ...]) -> str:
    return ", ".join(json.dumps(name) for name in names)


if __name__ == "__main__":
    embed(Path(sys.argv[1]), Path(sys.argv[2]))

"""Compile kernel variants ahead of time, without a GPU: one cubin per variant and architecture."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import ARCHITECTURES, KernelName, Variant
from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary, runs_on
from kvfold.plugins.cuda.kernels import append, decode, edit, feed, merge, penalize, prefill, sample
from kvfold.plugins.cuda.launches import FLOATS, INTEGERS
from kvfold.plugins.cuda.sampling_launches import SAMPLING_TYPES
from kvfold.plugins.cuda.tuning import SHARED_LIMIT, Tuning, tunings_of

# Each module holds one kernel of its own name, and its GRID.
KERNELS: dict[KernelName, ModuleType] = {
    "append": append,
    "prefill": prefill,
    "decode": decode,
    "merge": merge,
    "edit": edit,
    "penalize": penalize,
    "sample": sample,
    "feed": feed,
}
_ACTIVATIONS = ("query", "key", "value", "output", "rotated_query")
_CACHES = ("key_cache", "value_cache")
_TABLES = ("cumulative_sequence_length", "past_seqlens", "block_table", "slot_mapping")
_FLOAT_BUFFERS = (
    *("cos_cache", "sin_cache", "q_norm_weight", "k_norm_weight", "head_sink", "k_scale", "v_scale"),
    *("partial_max", "partial_sum", "partial_output"),
)
_TRITON_TYPES = {"float16": "fp16", "bfloat16": "bf16", "int8": "i8", "float32": "fp32"}
# Whole heads: vector loads may rely on what divides a head, as on aligned buffers.
_STRIDES = ("query_stride", "kv_stride")


@dataclass(frozen=True)
class Cubin:
    """One compiled kernel: its entry in `kernels.json`, the machine code, and the PTX it came from."""

    kernel: CompiledKernel
    code: bytes
    ptx: str


def compile_library(
    variants: Iterable[Variant],
    architectures: Iterable[int],
    directory: Path,
    progress: Callable[[float], None] = lambda fraction: None,
) -> KernelLibrary:
    """Compile every variant for every architecture into a folder: cubins and `kernels.json`.

    Args:
        variants: what the nodes of an engine need; the same one twice is compiled once.
        architectures: SM versions of the GPUs.
        directory: an existing folder.
        progress: told the fraction done.

    Raises:
        KernelError: an architecture has no kernels, or a variant does not fit its architecture.
    """
    wanted = [(variant, sm) for variant in dict.fromkeys(variants) for sm in _compiled_for(architectures)]
    kernels = []
    for index, (variant, architecture) in enumerate(wanted):
        cubin = compile_variant(variant, architecture)
        (directory / cubin.kernel.file).write_bytes(cubin.code)
        kernels.append(cubin.kernel)
        progress((index + 1) / len(wanted))
    library = KernelLibrary(triton=triton.__version__, kernels=tuple(kernels))
    library.save(directory)
    return library


def _compiled_for(architectures: Iterable[int]) -> list[int]:
    """The architectures whose cubins run on the given ones."""
    found = set()
    for wanted in architectures:
        usable = [sm for sm in ARCHITECTURES if runs_on(sm, wanted)]
        if not usable:
            known = ", ".join(str(sm) for sm in ARCHITECTURES)
            raise KernelError(f"SM {wanted} has no attention kernels; choose among {known}")
        found.add(max(usable))
    return sorted(found)


def compile_variant(variant: Variant, architecture: int) -> Cubin:
    """Compile one variant for one architecture, by the best choice that fits it.

    Raises:
        KernelError: SM 75 was asked for bfloat16, or a block takes more shared memory than there is.
    """
    *measured, rule = tunings_of(variant, architecture)
    for tuning in measured:
        try:
            return compile_tuned(variant, architecture, tuning)
        except Exception:  # a compiler's own kinds too; the rule fits, or says why not
            continue
    return compile_tuned(variant, architecture, rule)


def compile_tuned(variant: Variant, architecture: int, tuning: Tuning) -> Cubin:
    """Compile one variant for one architecture in one way; errors as of `compile_variant`."""
    if architecture == 75 and "bfloat16" in (variant.activation_dtype, variant.cache_dtype):
        raise KernelError("SM 75 has no bfloat16; set activation_dtype: float16, or build without SM 75")
    module = KERNELS[variant.kernel]
    compiled = _compile(getattr(module, variant.kernel), variant, tuning, architecture)
    shared = int(compiled.metadata.shared)
    if shared > SHARED_LIMIT[architecture]:
        raise KernelError(
            f"{variant.name} takes {shared} bytes of shared memory, SM {architecture} has "
            f"{SHARED_LIMIT[architecture]} a block; lower its tiles in plugins/cuda/tuning.py"
        )
    code = compiled.asm["cubin"]
    registers, spilled = _resources(code)
    kernel = CompiledKernel(
        variant=variant.name,
        architecture=architecture,
        symbol=compiled.metadata.name,
        file=f"{variant.name}-sm{architecture}.cubin",
        sha256=hashlib.sha256(code).hexdigest(),
        num_warps=tuning.num_warps,
        shared_bytes=shared,
        registers=registers,
        spill_bytes=spilled,
        arguments=_arguments(getattr(module, variant.kernel)),
        grid=module.GRID,
        constants=_launch_constants(variant, tuning),
    )
    return Cubin(kernel, code, compiled.asm["ptx"])


def _arguments(function: Any) -> tuple[str, ...]:
    """Parameters that are there at run time; the others are UPPER_CASE."""
    return tuple(name for name in function.arg_names if not name.isupper())


def _compile(function: Any, variant: Variant, tuning: Tuning, architecture: int) -> Any:
    constants = {**dict(variant.constants), **tuning.constants}
    types = _argument_types(variant)
    signature = {name: "constexpr" if name.isupper() else types[name] for name in function.arg_names}
    stride = 8 if constants.get("HEAD_SIZE", 0) % 16 else 16
    divisors = {
        (index,): [["tt.divisibility", stride if name in _STRIDES else 16]]
        for index, name in enumerate(function.arg_names)
        if signature[name].startswith("*") or name in _STRIDES
    }
    source = ASTSource(
        function,
        signature,
        {(function.arg_names.index(name),): value for name, value in constants.items()},
        divisors,
    )
    # The others have no fused multiply-add: a rotated key must round as the reference's, for its bytes.
    options = {
        "num_warps": tuning.num_warps,
        "num_stages": tuning.num_stages,
        "enable_fp_fusion": variant.kernel in ("prefill", "decode", "merge"),
    }
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _argument_types(variant: Variant) -> dict[str, str]:
    """Triton's type of every name that a kernel may take."""
    activation, cache = _TRITON_TYPES[variant.activation_dtype], _TRITON_TYPES[variant.cache_dtype]
    return {
        **dict.fromkeys(_ACTIVATIONS, f"*{activation}"),
        **dict.fromkeys(_CACHES, f"*{cache}"),
        **dict.fromkeys(_TABLES, "*i32"),
        **dict.fromkeys(_FLOAT_BUFFERS, "*fp32"),
        **dict.fromkeys(FLOATS, "fp32"),
        **dict.fromkeys(INTEGERS, "i32"),
        **SAMPLING_TYPES,
    }


def _launch_constants(variant: Variant, tuning: Tuning) -> dict[str, int]:
    """The tile sizes that a launcher must know to count blocks."""
    if variant.kernel == "prefill":
        return {"tokens_per_tile": tuning.constants["ROWS"] // dict(variant.constants)["GROUP_SIZE"]}
    return {"split_keys": tuning.constants["SPLIT_KEYS"]} if variant.kernel == "decode" else {}


def _resources(code: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of local memory per thread that registers spill to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if found is None:
        raise KernelError(
            f"cuobjdump of triton {triton.__version__} printed no resource usage: {report!r:.200}"
        )
    return int(found[1]), int(found[2])

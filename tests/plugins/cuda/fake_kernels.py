"""A kernel library with the names of the real one and no code in its cubins: enough to build with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from kvfold.plugins.cuda.attention_spec import AttentionSpec, variants_of
from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary

# Of each kernel: what it takes, its grid, and constants, in the words of `plugins.cuda.launches`.
KERNELS: dict[str, tuple[str, tuple[str, str, str], dict[str, int]]] = {
    "append": (
        "query key value key_cache value_cache cumulative_sequence_length past_seqlens cos_cache sin_cache "
        "slot_mapping q_norm_weight k_norm_weight k_scale v_scale rotated_query sequences num_heads "
        "kv_num_heads query_stride kv_stride epsilon",
        ("tokens", "num_heads", "one"),
        {},
    ),
    "prefill": (
        "rotated_query key_cache value_cache cumulative_sequence_length past_seqlens block_table head_sink "
        "k_scale v_scale output sequences table_width kv_num_heads window sinks scale softcap",
        ("query_tiles", "kv_num_heads", "one"),
        {"tokens_per_tile": 16},
    ),
    "decode": (
        "rotated_query key_cache value_cache past_seqlens block_table k_scale v_scale partial_max "
        "partial_sum partial_output table_width kv_num_heads window sinks splits scale softcap",
        ("splits", "kv_num_heads", "sequences"),
        {"split_keys": 64},
    ),
    "merge": (
        "partial_max partial_sum partial_output head_sink output num_heads splits",
        ("sequences", "num_heads", "one"),
        {},
    ),
}


def fake_kernels(
    specs: Iterable[AttentionSpec], architectures: Iterable[int], directory: Path, split_keys: bool = True
) -> KernelLibrary:
    """Write a library for the specs into `directory`.

    Decode and prefill want more than 48 KiB of shared memory. Without `split_keys` decode lacks its constant.
    """
    kernels = []
    variants = dict.fromkeys(variant for spec in specs for variant in variants_of(spec))
    for architecture in architectures:
        for variant in variants:
            arguments, grid, constants = KERNELS[variant.kernel]
            file = f"{variant.name}.sm{architecture}.cubin"
            (directory / file).write_bytes(file.encode())
            big = variant.kernel in ("prefill", "decode")
            kernels.append(
                CompiledKernel(
                    variant=variant.name,
                    architecture=architecture,
                    symbol=variant.kernel,
                    file=file,
                    sha256=hashlib.sha256(file.encode()).hexdigest(),
                    num_warps=4,
                    shared_bytes=60_000 if big else 512,
                    registers=64,
                    spill_bytes=0,
                    arguments=tuple(arguments.split()),
                    grid=grid,
                    constants=constants if split_keys else {},
                )
            )
    library = KernelLibrary(triton="0", kernels=tuple(kernels))
    library.save(directory)
    return library

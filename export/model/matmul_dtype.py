"""Where, and in which dtype, this machine multiplies matrices fastest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

CPU = torch.device("cpu")


def training_device() -> torch.device:
    """The first CUDA GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matmul_dtype(device: torch.device = CPU) -> torch.dtype:
    """bfloat16 where the device multiplies it natively (a CPU about three times as fast), else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    features = torch.cpu.get_capabilities()
    native = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


@contextmanager
def fast_products() -> Iterator[None]:
    """Let float32 products round their factors to bfloat16, for work that bears what `matmul_dtype` rounds.

    It is faster where nothing is rounded, too: then oneDNN multiplies in the place of MKL, which takes twice
    as long on an AMD CPU.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def multiply_in_float32(module: nn.Module) -> None:
    """Let a bfloat16 module's linears multiply its values in float32 and round what comes out.

    A bfloat16 product does the same but for the order of its sums; PyTorch takes eight times as long on CPUs
    without instructions for them (two cores of an AMD EPYC with AVX2). In place; what else shares a linear's
    weights keeps them in bfloat16.
    """
    for linear in module.modules():
        if not isinstance(linear, nn.Linear):
            continue
        for name, parameter in list(linear.named_parameters()):
            setattr(linear, name, nn.Parameter(parameter.float(), requires_grad=False))
        linear.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
        linear.register_forward_hook(lambda _module, _inputs, output: output.to(torch.bfloat16))

"""The GPU of this machine as `kernel_figures` needs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

from kvfold.pipeline.build.tuning.device_case import DeviceCase
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.cuda.compile_kernels import compile_variant
from kvfold.runtime.engine.cuda.device import Device
from tests.gpu.runs.kernel_figures import Peer

SAMPLES, SAMPLE_SECONDS = 5, 0.02
COPY_BYTES = 1 << 30


class GpuLab:
    """Times kernels: ours from cubins through the driver, PyTorch's by its own events."""

    def ours(self, case: TuningCase) -> float:
        """As `KernelLab.ours`, as the kernels are compiled for this GPU."""
        device = Device.open()
        try:
            timed = DeviceCase(device, case).time(compile_variant(case.variant, device.architecture))
            if timed is None:
                raise TargetError(f"{device.name} refuses the kernel of {case.name}; run `kvfold tune` on it")
            return timed.seconds
        finally:
            device.synchronize()
            device.close()

    def peer(self, name: Peer, case: TuningCase) -> float | str:
        """As `KernelLab.peer`; KV heads are shared by PyTorch where it can, else repeated beforehand."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} has no CUDA"
        backend = {"flash-attention 2": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}[name]
        attributes, size = case.spec.attributes, case.spec.head_size
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.float16}
        query = torch.randn(case.sequences, attributes.num_heads, case.new, size, **options)
        key, value = (
            torch.randn(case.sequences, attributes.kv_num_heads, case.past + case.new, size, **options)
            for _ in range(2)
        )
        causal = case.new > 1

        def call() -> object:
            return scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)

        try:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return _seconds(call)
        except RuntimeError as error:  # the backend is not built in, or takes no such shape
            return f"cannot: {str(error).splitlines()[0]:.80}"

    def copied_bytes_per_second(self) -> float:
        """As `KernelLab.copied_bytes_per_second`."""
        device = Device.open()
        try:
            source, target = device.allocate(COPY_BYTES), device.allocate(COPY_BYTES)
            start, end = (device.call("cuEventCreate", 0) for _ in range(2))
            samples = []
            for _ in range(SAMPLES + 1):
                device.call("cuEventRecord", start, device.stream)
                for _ in range(4):
                    device.copy(target, source, COPY_BYTES)
                device.call("cuEventRecord", end, device.stream)
                device.synchronize()
                samples.append(float(device.call("cuEventElapsedTime", start, end)) / 4000)
            return 2 * COPY_BYTES / median(samples[1:])
        finally:
            device.synchronize()
            device.close()


def _seconds(call: Callable[[], object]) -> float:
    """A call's time on the GPU: a median of several samples."""
    import torch

    def sample(times: int) -> float:
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000 / times

    with nullcontext() if torch.is_grad_enabled() is False else torch.no_grad():
        sample(2)
        times = max(1, round(SAMPLE_SECONDS / max(sample(1), 1e-6)))
        return median(sample(times) for _ in range(SAMPLES))

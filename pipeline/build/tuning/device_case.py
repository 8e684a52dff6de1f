"""A case's inputs in a GPU's memory, and cubins timed on them by the GPU's own clock."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import triton

from kvfold.pipeline.build.tuning.tune_kernels import Timed
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.cuda.attention_spec import variants_of
from kvfold.plugins.cuda.calls import Launch, resolve
from kvfold.plugins.cuda.compile_kernels import Cubin, compile_tuned
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.launches import workspace_sizes
from kvfold.plugins.cuda.tuning import DECODE_DIALS, rule_of
from kvfold.runtime.engine.cuda.device import Device

SAMPLES, SAMPLE_MILLISECONDS = 5, 4.0
COMPARED = 1 << 19  # elements of the output, its last ones
CHUNK = 1 << 21  # random numbers, repeated through a buffer
WARP, STATIC_SHARED_BYTES = 32, 48 * 1024
_C_TYPES: dict[str, Any] = {"pointer": ctypes.c_void_p, "int32": ctypes.c_int32, "float32": ctypes.c_float}
_SCRATCH = (("pointer", 0), ("pointer", 0))  # Triton's global and profile scratch, unused by our kernels


class DeviceCase:
    """Random caches, their pages in random order; the query is what an append would have left."""

    def __init__(self, device: Device, case: TuningCase) -> None:
        """Fill the memory; raises CapacityError where there is too little."""
        self._device, self._case = device, case
        # By the rule: a table, which may be damaged, is what this is to write.
        self._fixed = [
            compile_tuned(variant, device.architecture, rule_of(variant, device.architecture))
            for variant in variants_of(case.spec)
            if variant.kernel != case.kernel
        ]
        self._functions = {cubin.kernel.file: self._load(cubin) for cubin in self._fixed}
        rng = np.random.default_rng(0)
        spec, shapes, attributes = case.spec, case.shapes, case.spec.attributes
        pages = shapes.sequences * shapes.table_width
        elements = pages * spec.page_size * attributes.kv_num_heads * spec.head_size
        scales = np.full(attributes.kv_num_heads * spec.head_size, 0.02, np.float32)
        self._output_bytes = 2 * shapes.tokens * attributes.num_heads * spec.head_size
        self._buffers = {
            "query": 0,
            "key_cache": self._fill(elements, spec.cache_dtype, rng),
            "value_cache": self._fill(elements, spec.cache_dtype, rng),
            "k_scale": self._put(scales),
            "v_scale": self._put(scales),
            "block_table": self._put(rng.permutation(pages).astype(np.int32)),
            "cumulative_sequence_length": self._put(
                np.arange(shapes.sequences + 1, dtype=np.int32) * case.new
            ),
            "past_seqlens": self._put(np.full(shapes.sequences, case.past, np.int32)),
            "output": device.allocate(self._output_bytes),
        }
        most = workspace_sizes(spec, shapes, min(DECODE_DIALS["SPLIT_KEYS"]))
        self._workspace = self._fill(sum(most.values()) // 2, "float16", rng)
        self._start, self._end = (device.call("cuEventCreate", 0) for _ in range(2))

    def time(self, cubin: Cubin) -> Timed | None:
        """As `CaseOnGpu.time`, but for a way that breaks the GPU: that is a TargetError here."""
        try:
            return self._time(cubin)
        except TargetError:  # as where a block takes more than an SM has
            self._device.synchronize()  # a GPU that broke says so again and again
            return None

    def _time(self, cubin: Cubin) -> Timed:
        device = self._device
        functions = self._functions | {cubin.kernel.file: self._load(cubin)}
        kernels = (cubin.kernel, *(fixed.kernel for fixed in self._fixed))
        library = KernelLibrary(triton=triton.__version__, kernels=kernels)
        spec, shapes = self._case.spec, self._case.shapes
        _, *launches = resolve(
            library, device.architecture, spec, shapes, self._buffers, self._workspace
        )  # the first is append's
        device.call("cuMemsetD8Async", self._buffers["output"], 255, self._output_bytes, device.stream)
        once = self._milliseconds(launches, functions, 1)
        output = self._download_output()
        times = max(1, round(SAMPLE_MILLISECONDS / max(once, 1e-3)))
        samples = [self._milliseconds(launches, functions, times) / times for _ in range(SAMPLES)]
        return Timed(median(samples) / 1000, output)

    def _milliseconds(self, launches: Sequence[Launch], functions: dict[str, Any], times: int) -> float:
        device = self._device
        device.call("cuEventRecord", self._start, device.stream)
        for _ in range(times):
            for launch in launches:
                self._launch(functions[launch.kernel.file], launch)
        device.call("cuEventRecord", self._end, device.stream)
        device.synchronize()
        return float(device.call("cuEventElapsedTime", self._start, self._end))

    def _launch(self, function: Any, launch: Launch) -> None:
        values = [_C_TYPES[kind](value) for kind, value in (*launch.arguments, *_SCRATCH)]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        threads, shared = WARP * launch.kernel.num_warps, launch.kernel.shared_bytes
        self._device.launch_kernel(function, launch.grid, threads, shared, ctypes.addressof(pointers))

    def _load(self, cubin: Cubin) -> Any:
        """The driver's function of a cubin, which may use its shared memory."""
        device, kernel = self._device, cubin.kernel
        function = device.load_kernel(cubin.code, kernel.symbol)
        if kernel.shared_bytes > STATIC_SHARED_BYTES:
            names = device.driver.CUfunction_attribute
            attribute = names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            device.call("cuFuncSetAttribute", function, attribute, kernel.shared_bytes)
        return function

    def _fill(self, elements: int, dtype: str, rng: np.random.Generator) -> int:
        """Address of so many random numbers, a chunk of them over and over."""
        count = min(elements, CHUNK)
        if dtype == "int8":
            chunk: np.ndarray = rng.integers(-127, 128, count, dtype=np.int8)
        else:
            chunk = rng.standard_normal(count, dtype=np.float32).astype(np.float16)
        size = elements * chunk.itemsize
        address = self._put(chunk, size)
        for start in range(chunk.nbytes, size, chunk.nbytes):
            self._device.copy(address + start, address, min(chunk.nbytes, size - start))
        return address

    def _put(self, array: np.ndarray, size: int = 0) -> int:
        """Address of an array in memory of at least `size` bytes."""
        address = self._device.allocate(max(array.nbytes, size))
        pinned = self._device.allocate_pinned(array.nbytes)
        pinned[:] = array.view(np.uint8).ravel()
        self._device.upload(address, pinned)
        return address

    def _download_output(self) -> np.ndarray:
        """The output's last elements, float32."""
        size = min(2 * COMPARED, self._output_bytes)
        pinned = self._device.allocate_pinned(size)
        self._device.download(pinned, self._buffers["output"] + self._output_bytes - size)
        self._device.synchronize()
        return pinned.view(np.float16).astype(np.float32)

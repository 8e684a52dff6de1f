"""DeviceSampler: rows of logits are sampled where they lie, on the GPU; tokens alone come to the host."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvfold.plugins.cpu.sampling_calls import NativeRow, Results
from kvfold.plugins.cuda.attention_spec import KernelName
from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary
from kvfold.plugins.cuda.sampling_launches import (
    SAMPLING_VARIANTS,
    feed_numbers,
    kernels_of,
    numbers_of,
    results_of,
    tables_of,
)
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.staging import BindingTable, Staging, lay_out

# Each likeliest token is another pass over the row: where more are asked for, the host samples.
MOST_LIKELY = 32
THREADS_OF_A_WARP = 32
# Bytes for the tables of a batch without its masks, to begin with.
LEAST_INPUTS = 1 << 16


@dataclass(frozen=True)
class SamplerSizes:
    """Bytes of the GPU's memory that a sampler takes.

    Attributes:
        inputs: of a batch's tables, each row with a mask. Rows that name very many tokens need more.
        results: of what the kernels write.
        edited: of logits that are changed; taken when a batch first changes some.
    """

    inputs: int
    results: int
    edited: int

    @classmethod
    def of(cls, rows: int, vocab: int) -> SamplerSizes:
        """For batches of so many rows at most, of so many logits."""
        masks = 4 * rows * -(-vocab // 32)
        results = _result_table(rows, MOST_LIKELY).nbytes
        return cls(LEAST_INPUTS + masks, results, 4 * rows * vocab)

    @property
    def together(self) -> int:
        """All of it."""
        return self.inputs + self.results + self.edited


@dataclass(frozen=True)
class DeviceRows:
    """Rows of logits on the GPU.

    Attributes:
        logits: address of row 0.
        sources: which rows.
    """

    logits: int
    sources: tuple[int, ...]


@dataclass(frozen=True)
class _Launch:
    """A kernel with its arguments: their values, and the pointers to them that the driver reads."""

    function: Any
    kernel: CompiledKernel
    grid: tuple[int, int, int]
    values: Mapping[str, Any]
    pointers: Any

    @classmethod
    def of(cls, function: Any, kernel: CompiledKernel, named: Mapping[str, Any]) -> _Launch:
        """Resolve a kernel's arguments; Triton's two scratch pointers come last, null."""
        x, y, z = (int(named[name].value) for name in kernel.grid)
        values = {name: named[name] for name in kernel.arguments}
        every = [*values.values(), ctypes.c_void_p(), ctypes.c_void_p()]
        pointers = (ctypes.c_void_p * len(every))(*map(ctypes.addressof, every))
        return cls(function, kernel, (x, y, z), {**values, "": every}, pointers)

    def put_on(self, device: Device) -> None:
        """Put it on the stream."""
        threads, address = THREADS_OF_A_WARP * self.kernel.num_warps, ctypes.addressof(self.pointers)
        device.launch_kernel(self.function, self.grid, threads, self.kernel.shared_bytes, address)


class DeviceSampler:
    """The sampling kernels of an engine's folder, on a device. One batch at a time."""

    def __init__(self, device: Device, directory: Path, rows: int, vocab: int) -> None:
        """Load the kernels.

        Args:
            device: with the logits.
            directory: of the compiled kernels.
            rows: most of a batch.
            vocab: logits a row.

        Raises:
            KernelError: there are none for this GPU, or they are damaged.
        """
        library = KernelLibrary.load(directory)
        self._kernels: dict[KernelName, tuple[Any, CompiledKernel]] = {}
        for name, variant in SAMPLING_VARIANTS.items():
            kernel = library.find(variant.name, device.architecture)
            code = (directory / kernel.file).read_bytes()
            self._kernels[name] = (device.load_kernel(code, kernel.symbol), kernel)
        self._device = device
        self._rows, self._vocab = rows, vocab
        self._sizes = SamplerSizes.of(rows, vocab)
        self._edited = 0
        self._inputs = self._staging(self._sizes.inputs)
        self._results = self._staging(self._sizes.results)
        self._held: DeviceBatch | None = None
        self._feed: tuple[tuple[int, int, int], _Launch] | None = None

    def batch(self, rows: Sequence[NativeRow]) -> DeviceBatch:
        """Rows that are sampled together."""
        assert len(rows) <= self._rows
        return DeviceBatch(self, rows)

    def holds(self, batch: DeviceBatch) -> bool:
        """Whether a batch's tables are those on the GPU."""
        return self._held is batch

    def load(self, batch: DeviceBatch, tables: Mapping[str, np.ndarray], width: int) -> BindingTable:
        """Make ready for a batch: room for its tables, and the launches over them."""
        table = lay_out((name, array.dtype, array.shape) for name, array in tables.items())
        if table.nbytes > self._inputs.size:
            self._inputs = self._staging(2 * table.nbytes)
        for name, array in self.arrays(table).items():
            array[...] = tables[name]
        rows = len(tables["sources"])
        if len(kernels_of(tables)) > 1 and not self._edited:
            self._edited = self._device.allocate(self._sizes.edited)
        self._table = _result_table(rows, width)
        self._read = self._results.arrays(self._table)
        addresses = {"logits": 0, "edited": self._edited}
        for staging, laid in ((self._inputs, table), (self._results, self._table)):
            addresses |= {each.name: staging.address + each.offset for each in laid.bindings}
        named = {name: ctypes.c_void_p(address) for name, address in addresses.items()}
        numbers = numbers_of(rows, self._vocab, width)
        named |= {name: ctypes.c_int32(number) for name, number in numbers.items()}  # type: ignore[misc]
        self._logits = named["logits"]
        self._launches = [_Launch.of(*self._kernels[name], named) for name in kernels_of(tables)]
        self._held = batch
        return table

    def arrays(self, table: BindingTable) -> dict[str, np.ndarray]:
        """The pinned tables of the batch that it holds, to be written."""
        self._inputs.wait()
        return self._inputs.arrays(table)

    def upload(self, table: BindingTable) -> None:
        """Bring the tables of the batch that it holds to the GPU."""
        self._inputs.upload(table)

    def run(self, rows: DeviceRows) -> None:
        """Begin to sample the batch that it holds."""
        self._logits.value = rows.logits
        for launch in self._launches:
            launch.put_on(self._device)
        self._results.download(self._table)

    def read(self, results: Results) -> None:
        """Wait for what was begun, and for nothing behind it."""
        self._results.wait()
        for name, array in self._read.items():
            getattr(results, name)[...] = array

    def feed(self, input_ids: int, count: int) -> None:
        """See `Feed`: the tokens are those of what was begun last."""
        key = (input_ids, count, self._results.address + self._table.offset("tokens"))
        if self._feed is None or self._feed[0] != key:
            named: dict[str, Any] = {name: ctypes.c_int32(each) for name, each in feed_numbers(count).items()}
            named |= {"input_ids": ctypes.c_void_p(input_ids), "tokens": ctypes.c_void_p(key[2])}
            self._feed = key, _Launch.of(*self._kernels["feed"], named)
        self._feed[1].put_on(self._device)

    def _staging(self, size: int) -> Staging:
        return Staging(self._device, self._device.allocate(size), size)


class DeviceBatch:
    """A `RowBatch` on the GPU.

    Attributes:
        results: of the last call.
    """

    def __init__(self, sampler: DeviceSampler, rows: Sequence[NativeRow]) -> None:
        """What is changed in a row counts from the next call on."""
        self._sampler = sampler
        self._rows = tuple(rows)
        self._width = max((row.likely for row in rows if row.likely > 0), default=0)
        self.results = Results(len(rows), self._width)
        self._draws = any(row.temperature > 0 for row in rows)
        self._edits = any(
            row.mask or row.bias_count or row.banned_count or len(row.row.seen_ids) for row in rows
        )
        self._sources: tuple[int, ...] = ()
        self._table: BindingTable | None = None

    def begin(self, logits: DeviceRows) -> None:
        """See `RowBatch.begin`."""
        sampler, table, moved = self._sampler, self._table, self._sources != logits.sources
        if table is None or self._edits or not sampler.holds(self):
            table = self._table = sampler.load(self, tables_of(self._rows, logits.sources), self._width)
            sampler.upload(table)
        elif self._draws or moved:
            arrays = sampler.arrays(table)
            arrays["sources"][:] = logits.sources
            arrays["draw"][:] = [row.draw for row in self._rows]
            sampler.upload(table)
        self._sources = logits.sources
        sampler.run(logits)

    def finish(self) -> int:
        """See `RowBatch.finish`."""
        self._sampler.read(self.results)
        return int(np.count_nonzero(self.results.status))

    def sample_again(self, logits: DeviceRows, at: int) -> bool:
        """See `RowBatch.sample_again`."""
        alone = self._sampler.batch([self._rows[at]])
        alone.begin(DeviceRows(logits.logits, (logits.sources[at],)))
        failed = alone.finish()
        for name in ("tokens", "status", "logprobs"):
            getattr(self.results, name)[at] = getattr(alone.results, name)[0]
        for name in ("likely_ids", "likely_logprobs"):
            found = getattr(alone.results, name)[0]
            getattr(self.results, name)[at, : len(found)] = found
        return not failed


def _result_table(rows: int, width: int) -> BindingTable:
    return lay_out((name, np.dtype(dtype), shape) for name, (dtype, shape) in results_of(rows, width).items())


def open_sampler(device: Device, directory: Path, rows: int, vocab: int) -> DeviceSampler | None:
    """The sampler of an engine's kernels; None where it has none, as older ones have.

    Raises:
        KernelError: the kernels are damaged, or none of them is for this GPU.
    """
    compiled = {kernel.variant for kernel in KernelLibrary.load(directory).kernels}
    if not all(variant.name in compiled for variant in SAMPLING_VARIANTS.values()):
        return None
    return DeviceSampler(device, directory, rows, vocab)

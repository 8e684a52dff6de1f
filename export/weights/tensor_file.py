"""safetensors files, a tensor at a time.

Tensors are read, not mapped: pages of a mapped file count as memory of the process until it ends.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvfold.plugins.contract.errors import BundleError, KvfoldError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
READ_ELEMENTS = 1 << 22  # at a time, where a tensor is read in another type
LARGEST_HEADER = 100_000_000  # of the format; a length beyond that is no length


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        dtype: of its elements.
        shape: its axes.
        start: of its first byte in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize


def say_bundle(said: str) -> BundleError:
    """What is wrong with a file that kvfold wrote."""
    return BundleError(f"{said}; delete it and run the same `kvfold` command to write it again")


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read from it on access, in the type that it is stored in.

    Those of a type that is not in DTYPES are left out.

    Attributes:
        entries: where each lies.
    """

    def __init__(self, path: Path, say: Callable[[str], KvfoldError] = say_bundle) -> None:
        """Read the header; `say` makes the error of what is wrong with the file.

        Raises:
            KvfoldError: it cannot be read, is truncated or damaged, or, on access, it changed meanwhile.
        """
        self._path, self._say = path, say
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > LARGEST_HEADER:
                    raise ValueError(f"its header would have {length} bytes")
                self.entries = _entries(json.loads(file.read(length)), 8 + length)
        except OSError as error:
            raise say(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
            raise say(f"{path} is truncated or corrupted ({error})") from error
        self._size, self._time = self._stat()
        end = max((entry.start + entry.size for entry in self.entries.values()), default=0)
        if end > self._size:
            raise say(f"{path} is truncated: {self._size} bytes, its tensors end at {end}")

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name, self.entries[name])

    def rows(self, name: str, rows: slice) -> Tensor:
        """Neighbouring rows of a tensor; no other is read."""
        entry = self.entries[name]
        start, stop, _ = rows.indices(entry.shape[0])
        size = prod(entry.shape[1:]) * entry.dtype.itemsize
        return self._read(
            name, Entry(entry.dtype, (stop - start, *entry.shape[1:]), entry.start + start * size)
        )

    def in_float32(self, name: str, rows: slice) -> Tensor:
        """The same in float32, read some at a time: a large tensor is not in memory in two types."""
        start, stop, _ = rows.indices(self.entries[name].shape[0])
        tensor = torch.empty(stop - start, *self.entries[name].shape[1:])
        step = max(1, READ_ELEMENTS * (stop - start) // max(1, tensor.numel()))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            tensor[first - start : last - start] = self.rows(name, slice(first, last))
        return tensor

    def _read(self, name: str, entry: Entry) -> Tensor:
        if self._stat() != (self._size, self._time):
            raise self._say(f"{self._path} changed since it was opened, so {name} may be another model's")
        content = torch.empty(entry.size, dtype=torch.uint8)
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(entry.start)
                left = content.numpy().data
                while left and (count := file.readinto(left)):
                    left = left[count:]
        except OSError as error:
            raise self._say(f"{self._path}: tensor {name} cannot be read ({error.strerror})") from error
        if left:
            raise self._say(f"{self._path} is truncated in the middle of tensor {name}")
        return content.view(entry.dtype).reshape(entry.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def _stat(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise self._say(f"{self._path} is gone ({error.strerror})") from error
        return status.st_size, status.st_mtime_ns


def _entries(header: dict[str, dict[str, Any]], start: int) -> dict[str, Entry]:
    entries = {}
    for name, fields in header.items():
        if name == METADATA or fields["dtype"] not in DTYPES:
            continue
        begin, end = fields["data_offsets"]
        entry = Entry(DTYPES[fields["dtype"]], tuple(fields["shape"]), start + begin)
        if end - begin != entry.size or begin < 0:
            raise ValueError(f"tensor {name} has {end - begin} bytes, its shape {entry.size}")
        entries[name] = entry
    return entries


class TensorFolder(Mapping[str, Tensor]):
    """The tensors of all safetensors files of a folder, each read on access; none where there is none."""

    def __init__(self, folder: Path) -> None:
        files = [TensorFile(path) for path in layer_files(folder)]
        self._file_of = {name: file for file in files for name in file}

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def layer_files(folder: Path) -> list[Path]:
    """Files of tensors in a folder, by layer."""
    return sorted(folder.glob("*.safetensors"))


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[Tensor],
) -> None:
    """Write a safetensors file whose tensors come one by one, in the order of `shapes`.

    Raises:
        OSError: the disk is full, or cannot be written; what is there then is no whole file.
        ValueError: a tensor has another type or shape than was said.
    """
    header, offset = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = Entry(dtype, shape, 0).size
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, (dtype, shape)), tensor in zip(shapes.items(), tensors, strict=True):
            if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, promised {dtype} {shape}")
            if tensor.numel():
                file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """`write_tensors` of tensors that are all there."""
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(path, shapes, tensors.values())

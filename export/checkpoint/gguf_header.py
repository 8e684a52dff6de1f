"""The header of a GGUF file: its metadata, and where its tensors lie. Neither weights nor the gguf package.

The package's own reader makes an object of each token of a vocabulary, which takes seconds.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfold.plugins.contract.errors import CheckpointError

MAGIC, VERSIONS = b"GGUF", (2, 3)
# Numbers of value types, and how one value is packed.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
FLOAT32 = 0  # of tensor types
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's entry.

    Attributes:
        shape: as numpy orders it: the axis whose neighbours lie side by side is the last.
        kind: number of its type, a `gguf.GGMLQuantizationType`.
        offset: of its data, bytes from the beginning of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its weights.

    Attributes:
        metadata: values by key; arrays are lists.
        tensors: by name.
        size: bytes of the whole file.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    size: int

    def read_floats(self, name: str) -> tuple[float, ...] | None:
        """The values of a small float32 tensor; None where there is none.

        Raises:
            CheckpointError: it is of another type, or the file ends before it does.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        count = math.prod(tensor.shape)
        if tensor.kind != FLOAT32 or tensor.offset + 4 * count > self.size:
            raise CheckpointError(f"{self.path}: tensor {name} is not float32, or the file is truncated")
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            return struct.unpack(f"<{count}f", file.read(4 * count))


def read_gguf_header(path: Path) -> GgufHeader:
    """Read everything before the weights.

    Raises:
        CheckpointError: it is no GGUF file of a known version, or it is truncated or corrupted.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(path, content).header()
    except (ValueError, OSError, struct.error, MemoryError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a GGUF file, or it is truncated or corrupted: {error}"
        ) from error


class _Reader:
    """Reads a header from front to back; struct.error and ValueError tell of damage."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._position = 0

    def header(self) -> GgufHeader:
        """The whole of it."""
        if self._content[:4] != MAGIC:
            raise ValueError(f"it begins with {self._content[:4]!r}, not {MAGIC!r}")
        self._position = 4
        if (version := self._number("I")) not in VERSIONS:
            raise ValueError(f"GGUF version {version} is not one of {VERSIONS}")
        tensor_count, key_count = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            if key in metadata:
                raise ValueError(f"the key {key} stands twice")
            metadata[key] = self._value(self._number("I"))
        entries = [self._entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-self._position // alignment) * alignment
        tensors = {
            name: GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in entries
        }
        if len(tensors) != len(entries):
            raise ValueError("a tensor's name stands twice")
        return GgufHeader(self._path, metadata, tensors, len(self._content))

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        sizes = self._many("Q", self._number("I"))
        return name, tuple(reversed(sizes)), self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"it has a value of the unknown type {kind}")
        kind, count = self._number("I"), self._number("Q")
        if kind in SCALARS:
            return list(self._many(SCALARS[kind], count))
        one: Callable[[], Any] = self._string if kind == STRING else lambda: self._value(kind)
        return [one() for _ in range(count)]

    def _string(self) -> str:
        (length,) = struct.unpack_from("<Q", self._content, self._position)
        start = self._position + 8
        self._position = start + length
        if self._position > len(self._content):
            raise ValueError("it ends within a text")
        return self._content[start : self._position].decode("utf-8")

    def _number(self, code: str) -> Any:
        return self._many(code, 1)[0]

    def _many(self, code: str, count: int) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}") * count
        if self._position + size > len(self._content):
            raise ValueError("it ends within its header")
        values = struct.unpack_from(f"<{count}{code}", self._content, self._position)
        self._position += size
        return values

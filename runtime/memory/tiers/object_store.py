"""Where a tier's objects are: what a place of bytes must offer, and host memory as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from kvfold.runtime.memory.tiers.object_file import ObjectName

SHARDS = 256


class TakenPlaceError(OSError):
    """An object cannot be written since something else, a link for instance, is where it belongs."""


class FoundObject(NamedTuple):
    """An object that somebody else wrote: its bytes, and when it was used, in seconds since the epoch."""

    name: ObjectName
    size: int
    used: float


class Listing(NamedTuple):
    """The objects whose keys begin with one byte: all keys, and what was not known."""

    shard: int
    keys: set[bytes]
    found: list[FoundObject]


class ObjectStore(Protocol):
    """Bytes by name. Every method may raise OSError; each may be called from two threads at once."""

    def write(self, name: ObjectName, parts: Sequence[memoryview | bytes]) -> int:
        """Put an object: whole or not at all. Returns its bytes."""
        ...

    def read(self, name: ObjectName, limit: int) -> np.ndarray | None:
        """The bytes, uint8, and note that they were used; None if there is no such object.

        Args:
            name: of the object.
            limit: one that is longer comes back cut, to be found damaged.
        """
        ...

    def unlink(self, name: ObjectName) -> None:
        """Take an object away, if it is there."""
        ...

    def used(self, name: ObjectName) -> float:
        """When an object was used, by whomever, in seconds since the epoch; 0 if it is not there."""
        ...

    def listings(self, known: Callable[[bytes], bool]) -> Iterator[Listing]:
        """Shards that changed since the last call. `known` tells the keys that need not be looked at."""
        ...

    @property
    def ignored(self) -> int:
        """Things among the objects that are none, as of the last listings."""
        ...


class HostMemory:
    """Objects in memory that engines do not use."""

    def __init__(self) -> None:
        """Empty."""
        self._objects: dict[ObjectName, np.ndarray] = {}

    def write(self, name: ObjectName, parts: Sequence[memoryview | bytes]) -> int:
        """Keep a copy."""
        data = np.frombuffer(b"".join(parts), np.uint8)
        self._objects[name] = data
        return len(data)

    def read(self, name: ObjectName, limit: int) -> np.ndarray | None:
        """The bytes themselves, which cannot be written."""
        data = self._objects.get(name)
        return None if data is None else data[:limit]

    def unlink(self, name: ObjectName) -> None:
        """Drop an object."""
        self._objects.pop(name, None)

    def used(self, name: ObjectName) -> float:
        """Nobody else uses them."""
        return 0.0

    def listings(self, known: Callable[[bytes], bool]) -> Iterator[Listing]:
        """Nobody else writes here."""
        return iter(())

    @property
    def ignored(self) -> int:
        """Nothing else is here."""
        return 0

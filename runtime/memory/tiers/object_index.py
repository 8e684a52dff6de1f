"""ObjectIndex: which objects there are, in memory, as trees that grow from the tenants' roots.

A node is a segment or a checkpoint. It is there, or promised (being written), or unknown: then it stands for
the parent of others, as roots do. Laws: an unknown node has children, or it is not in the index; only a node
without children can be given up, so leaves go before roots.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from threading import Lock

from kvfold.runtime.memory.tiers.layout import SEGMENT_PAGES, TierLayout
from kvfold.runtime.memory.tiers.object_file import ObjectName
from kvfold.runtime.memory.tiers.object_order import ObjectOrder, priority
from kvfold.runtime.memory.tiers.object_store import SHARDS

UNKNOWN, PROMISED, THERE = range(3)


class ObjectIndex:
    """Safe for several threads. No call does I/O, and only the time of `others` grows with the index."""

    def __init__(self, layout: TierLayout, *, by_root: bool) -> None:
        """Empty.

        Args:
            layout: of the engine's pages.
            by_root: whether victims of one tenant will be asked for.
        """
        self.total_bytes = 0
        self.num_objects = 0
        self._layout = layout
        self._lock = Lock()
        self._places: list[dict[bytes, int]] = [{} for _ in range(SHARDS)]
        self._keys: list[bytes] = []
        self._roots = array("i")
        self._parents = array("i")
        self._children = array("i")
        self._lengths = array("i")
        self._sizes = array("q")
        self._used = array("d")
        self._ends = array("Q")
        self._states = bytearray()
        self._is_checkpoint = bytearray()
        self._free: list[int] = []
        self._order = ObjectOrder(self._priority)
        self._root_numbers: dict[bytes, int] = {}
        self._root_keys: list[bytes] = []
        self._root_orders: list[ObjectOrder] | None = [] if by_root else None
        self._root_bytes: list[int] = []

    # What is asked of it

    def holds(self, key: bytes) -> bool:
        """Whether an object is there or promised."""
        with self._lock:
            place = self._places[key[0]].get(key)
            return place is not None and self._states[place] != UNKNOWN

    def is_there(self, key: bytes) -> bool:
        """Whether an object is there."""
        with self._lock:
            place = self._places[key[0]].get(key)
            return place is not None and self._states[place] == THERE

    def reach(self, keys: Sequence[bytes]) -> list[int]:
        """Follow a chain as far as its segments are there.

        Args:
            keys: the root's and each segment's.

        Returns:
            After each number of segments that was reached, from 0 on: how many pages more may end in a
            checkpoint, a bit each.
        """
        masks = []
        with self._lock:
            for number, key in enumerate(keys):
                place = self._places[key[0]].get(key)
                if number and (place is None or self._states[place] != THERE):
                    break
                masks.append(0 if place is None else self._ends[place])
        return masks

    def root_bytes(self, root: bytes) -> int:
        """Bytes of one tenant."""
        with self._lock:
            number = self._root_numbers.get(root)
            return 0 if number is None else self._root_bytes[number]

    def others(self, shard: int, keys: AbstractSet[bytes]) -> list[bytes]:
        """Objects that are there, whose key begins with this byte and is not among these."""
        with self._lock:
            places = self._places[shard]
            return [key for key in places.keys() - keys if self._states[places[key]] == THERE]

    def victim(self, root: bytes | None = None) -> ObjectName | None:
        """What to give up first, of one tenant or of all; None where nothing can be."""
        with self._lock:
            order = self._order
            if root is not None:
                number = self._root_number(root)
                assert self._root_orders is not None, "made without `by_root`"
                order = self._root_orders[number]
            place = order.first()
            return None if place is None else self._name(place)

    # What is told to it

    def promise(self, names: Iterable[ObjectName]) -> None:
        """These will be written: their parents stay, and nobody writes them twice."""
        with self._lock:
            for name in names:
                place = self._attach(name)
                if self._states[place] == UNKNOWN:
                    self._states[place] = PROMISED

    def add(self, name: ObjectName, size: int, used: float) -> None:
        """An object is there."""
        with self._lock:
            place = self._attach(name)
            if self._states[place] == THERE:
                self._count(place, -1)
            self._states[place] = THERE
            self._sizes[place] = size
            self._used[place] = max(used, self._used[place])
            self._count(place, 1)
            if name.is_checkpoint:
                self._ends[self._parents[place]] |= 1 << name.global_rows
            self._enter(place)

    def touch(self, key: bytes, used: float) -> bool:
        """An object was used. False where that is not news."""
        with self._lock:
            place = self._places[key[0]].get(key)
            if place is None or self._states[place] != THERE or used <= self._used[place]:
                return False
            self._used[place] = used
            self._enter(place)
            return True

    def forget(self, key: bytes, *, promised: bool = False) -> None:
        """An object is gone; with `promised`, only where it was promised and did not come."""
        with self._lock:
            place = self._places[key[0]].get(key)
            if place is None or self._states[place] != (PROMISED if promised else THERE):
                return
            if not promised:
                self._count(place, -1)
            self._states[place] = UNKNOWN
            self._prune(place)

    # With the lock held

    def _name(self, place: int) -> ObjectName:
        return ObjectName(
            self._root_keys[self._roots[place]],
            self._keys[place],
            self._keys[self._parents[place]],
            self._lengths[place],
            bool(self._is_checkpoint[place]),
        )

    def _count(self, place: int, sign: int) -> None:
        size, root = sign * self._sizes[place], self._roots[place]
        self.num_objects += sign
        self.total_bytes += size
        self._root_bytes[root] += size

    def _priority(self, place: int) -> float | None:
        if self._states[place] != THERE or self._children[place]:
            return None
        saved = 0
        if self._is_checkpoint[place]:
            saved = self._lengths[place]
        elif not self._layout.has_local:
            saved = SEGMENT_PAGES
        return priority(self._used[place], saved * self._layout.page_size, self._sizes[place])

    def _enter(self, place: int) -> None:
        self._order.push(place)
        if self._root_orders is not None:
            self._root_orders[self._roots[place]].push(place)

    def _root_number(self, root: bytes) -> int:
        """Roots are numbered for ever: there are as many as tenants."""
        number = self._root_numbers.setdefault(root, len(self._root_keys))
        if number == len(self._root_keys):
            self._root_keys.append(root)
            self._root_bytes.append(0)
            if self._root_orders is not None:
                self._root_orders.append(ObjectOrder(self._priority))
        return number

    def _attach(self, name: ObjectName) -> int:
        place = self._place(name.key)
        if self._parents[place] < 0:
            parent = self._place(name.parent)
            self._roots[place] = self._root_number(name.root)
            self._parents[place] = parent
            self._lengths[place] = name.pages
            self._is_checkpoint[place] = name.is_checkpoint
            self._children[parent] += 1
        return place

    def _place(self, key: bytes) -> int:
        places = self._places[key[0]]
        place = places.get(key)
        if place is not None:
            return place
        if self._free:
            place = self._free.pop()
            self._keys[place] = key
        else:
            place = len(self._keys)
            self._keys.append(key)
            for numbers in (self._roots, self._parents, self._children, self._lengths, self._sizes):
                numbers.append(0)
            self._used.append(0.0)
            self._ends.append(0)
            self._states.append(UNKNOWN)
            self._is_checkpoint.append(0)
        self._roots[place] = self._parents[place] = -1
        self._children[place] = 0
        self._used[place] = 0.0
        self._ends[place] = 0
        places[key] = place
        return place

    def _prune(self, place: int) -> None:
        """Take out a node that nothing needs, and what is not needed then."""
        while place >= 0 and self._states[place] == UNKNOWN and not self._children[place]:
            parent = self._parents[place]
            key, self._keys[place] = self._keys[place], b""
            del self._places[key[0]][key]
            self._free.append(place)
            place = parent
            if place >= 0:
                self._children[place] -= 1
                if not self._children[place]:
                    self._ends[place] = 0
                    if self._states[place] == THERE:
                        self._enter(place)

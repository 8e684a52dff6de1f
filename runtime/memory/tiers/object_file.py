"""An object as bytes, and its name.

    header   magic, format version, kind, number of groups, length in pages, number of tokens, payload bytes,
             root key, parent key; then the number of rows of each group; then a sha256 of all other bytes
    tokens   int32: of the segment, or from the last whole segment to the checkpoint
    payload  the rows of each group, in the plan's order

A name says what an index must know: root, key, parent and length. No header is read to list a directory.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from kvfold.runtime.memory.tiers.layout import FORMAT_VERSION, SEGMENT_PAGES, TierLayout

MAGIC = b"kvfoldkv"
HEADER = struct.Struct("<8sHBBIIQ16s16s")
DIGEST_BYTES = 32
# No sequence has 2**31 pages.
NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-([0-9a-f]{32})-([0-7][0-9a-f]{7})\.(segment|checkpoint)")


class ObjectName(NamedTuple):
    """What an object is: equal names are equal contents.

    Attributes:
        root: of the tenant.
        key: of the object.
        parent: key of the segment before it, or the root.
        pages: length, from the sequence's start, at its end.
        is_checkpoint: sinks, tails and the last global pages; else a segment of global pages.
    """

    root: bytes
    key: bytes
    parent: bytes
    pages: int
    is_checkpoint: bool

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """A file's name; None where it is none of ours."""
        match = NAME.fullmatch(text)
        if match is None:
            return None
        root, key, parent, pages, kind = match.groups()
        hexes = bytes.fromhex(root), bytes.fromhex(key), bytes.fromhex(parent)
        return None if key == parent else cls(*hexes, int(pages, 16), kind == "checkpoint")

    @property
    def text(self) -> str:
        """As a file's name."""
        kind = "checkpoint" if self.is_checkpoint else "segment"
        return f"{self.root.hex()}-{self.key.hex()}-{self.parent.hex()}-{self.pages:08x}.{kind}"

    @property
    def global_rows(self) -> int:
        """Pages of each global group that it holds."""
        return self.pages % SEGMENT_PAGES if self.is_checkpoint else SEGMENT_PAGES

    @property
    def first_page(self) -> int:
        """Where its global pages and its tokens begin."""
        return self.pages - self.global_rows


class PageObject(NamedTuple):
    """An object to be written: `rows` are uint8 [rows, page_bytes] by group, absent where there are none."""

    name: ObjectName
    tokens: bytes
    rows: Mapping[str, np.ndarray]


def size_limit(name: ObjectName, layout: TierLayout) -> int:
    """Bytes that a whole object of this name cannot exceed."""
    rows = sum(
        group.page_bytes * (name.pages if group.is_local else SEGMENT_PAGES) for group in layout.groups
    )
    head = HEADER.size + 4 * len(layout.groups) + DIGEST_BYTES
    return head + 4 * layout.segment_tokens + rows


def encode(item: PageObject, layout: TierLayout) -> list[memoryview | bytes]:
    """The object's bytes, in parts; no page is copied."""
    counts = [len(item.rows.get(group.name, ())) for group in layout.groups]
    body: list[memoryview | bytes] = [item.tokens]
    for group, count in zip(layout.groups, counts, strict=True):
        if count:
            body.append(item.rows[group.name].reshape(-1).data)
    head = _header(item.name, item.tokens, counts, layout)
    hashed = hashlib.sha256(head)
    for part in body:
        hashed.update(part)
    return [head + hashed.digest(), *body]


def decode(
    data: np.ndarray, name: ObjectName, tokens: bytes, layout: TierLayout
) -> dict[str, np.ndarray] | None:
    """The rows of each group, as views; None unless every byte is what was written for just these tokens.

    Args:
        data: uint8, the whole object.
        name: what it must be.
        tokens: what it must hold.
        layout: of the engine.
    """
    groups = layout.groups
    head = HEADER.size + 4 * len(groups)
    body = head + DIGEST_BYTES
    if len(data) < body + len(tokens):
        return None
    hashed = hashlib.sha256(data[:head].data)
    hashed.update(data[body:].data)
    if hashed.digest() != data[head:body].tobytes():
        return None
    counts = [int(count) for count in data[HEADER.size : head].view("<u4")]
    if data[:head].tobytes() != _header(name, tokens, counts, layout):
        return None
    start = body + len(tokens)
    if data[body:start].tobytes() != tokens:
        return None
    rows = {}
    for group, count in zip(groups, counts, strict=True):
        if count != name.global_rows and not group.is_local:
            return None
        end = start + count * group.page_bytes
        if end > len(data):
            return None
        rows[group.name] = data[start:end].reshape(count, group.page_bytes)
        start = end
    return rows if start == len(data) else None


def _header(name: ObjectName, tokens: bytes, counts: Sequence[int], layout: TierLayout) -> bytes:
    payload = sum(count * group.page_bytes for count, group in zip(counts, layout.groups, strict=True))
    fixed = HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        name.is_checkpoint,
        len(counts),
        name.pages,
        len(tokens) // 4,
        payload,
        name.root,
        name.parent,
    )
    return fixed + struct.pack(f"<{len(counts)}I", *counts)

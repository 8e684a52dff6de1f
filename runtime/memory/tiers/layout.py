"""What the pages of an engine look like to a tier, and the key that all names of one engine start from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan

FORMAT_VERSION = 1
SEGMENT_PAGES = 64
KEY_BYTES = 16


def digest(label: bytes, *parts: bytes) -> bytes:
    """A key of KEY_BYTES; each part's length is hashed too, so that no two lists of parts are alike."""
    hashed = hashlib.sha256(label)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()[:KEY_BYTES]


@dataclass(frozen=True)
class TierGroup:
    """A horizon group: bytes of one page in all its banks, and whether a window forgets its pages."""

    name: str
    page_bytes: int
    is_local: bool


@dataclass(frozen=True)
class TierLayout:
    """Groups in the plan's order.

    Attributes:
        page_size: tokens a page.
        groups: a row of pages of each is `page_bytes` long.
    """

    page_size: int
    groups: tuple[TierGroup, ...]

    @classmethod
    def of(cls, plan: FoldPlan) -> Self:
        """The layout of a plan's pages."""
        size = plan.page_size
        return cls(
            size,
            tuple(
                TierGroup(group.name, group.page_bytes(size), group.sliding_window is not None)
                for group in plan.groups
            ),
        )

    @property
    def has_local(self) -> bool:
        """Whether a hit needs more than global pages, so that only a checkpoint ends one."""
        return any(group.is_local for group in self.groups)

    @property
    def segment_tokens(self) -> int:
        """Tokens of a chain segment."""
        return SEGMENT_PAGES * self.page_size

    def root_key(self, fingerprint: str, kernel_class: str) -> bytes:
        """Names what may be shared: a change of any of these is another engine, which finds nothing.

        Args:
            fingerprint: of model, plan and scales.
            kernel_class: instruction set of the CPU kernels, or the backend; two of them agree within a
                tolerance only.
        """
        shape = "".join(f"{group.name}={group.page_bytes},{group.is_local};" for group in self.groups)
        parts = (str(FORMAT_VERSION), fingerprint, kernel_class, str(self.page_size), shape)
        return digest(b"kvfold root", *(part.encode() for part in parts))

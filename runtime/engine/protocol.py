"""The step that the scheduler hands down, and what an engine must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from kvfold.runtime.sampling.batch_sampler import Sampled
from kvfold.runtime.sampling.sampling_state import SamplingState

if TYPE_CHECKING:  # a type only; pydantic would double the import time of `runtime`
    from kvfold.plugins.contract.fold_plan import FoldPlan


@dataclass(frozen=True)
class GroupTables:
    """Paging of one step for one horizon group.

    Attributes:
        block_table: int32 [B, M], page ids in order of position; -1 is freed or unused.
        slot_mapping: int32 [T], page id * page_size + offset of each new token.
    """

    block_table: np.ndarray
    slot_mapping: np.ndarray


@dataclass(frozen=True)
class StepInputs:
    """T new tokens of B sequences, packed; names and shapes as in `plugins.contract.step`.

    An id may be a `drawn_id`, where an engine draws tokens that feed its next step (`Drawing.feeds`).
    """

    input_ids: np.ndarray
    cumulative_sequence_length: np.ndarray
    past_seqlens: np.ndarray
    logits_indices: np.ndarray
    tables: Mapping[str, GroupTables]


@dataclass(frozen=True)
class EngineInfo:
    """What the scheduler must know of an engine.

    A group's pool has addresses for the whole budget, but memory only where a slab is committed
    (`PageStore.commit`). Law, kept by whoever commits: over all groups, the bytes of committed slabs are
    at most `kv_cache_bytes`.

    Attributes:
        plan: the FoldPlan the engine was built from.
        kv_cache_bytes: memory that all pools together may hold.
        num_pages: page ids of each horizon group's pool, by group name: a multiple of its `slab_pages`.
        slab_pages: pages of one slab of each group. Slab s is the pages [s * n, (s + 1) * n).
        vocab_size: width of the logits.
        max_context_length: longest sequence in tokens.
        fingerprint: identifies model, plan and scales.
        max_logits: rows of logits that one step may want, at least as many as it may have sequences; None:
            one for each of its tokens.
    """

    plan: FoldPlan
    kv_cache_bytes: int
    num_pages: Mapping[str, int]
    slab_pages: Mapping[str, int]
    vocab_size: int
    max_context_length: int
    fingerprint: str
    max_logits: int | None = None

    @property
    def num_slabs(self) -> dict[str, int]:
        """Slabs of each group's pool."""
        return {name: count // self.slab_pages[name] for name, count in self.num_pages.items()}


class PageStore(Protocol):
    """The bytes of an engine's pages; what they hold is the engine's, who has which is the caller's.

    A page of a group is one row in every bank of it. In a buffer a page is a row of
    `group.page_bytes(page_size)` bytes: for each bank, in the plan's order, its keys, then its values,
    page_size x heads x head_dim elements each, as the cache holds them.

    A call comes after the step that is under way, if one is, and is done when it returns. The caller's word
    is taken: page ids and slabs are in range, copied pages are committed, none is named twice.
    """

    def commit(self, group: str, slabs: Sequence[int]) -> None:
        """Put memory behind slabs that have none, before a page of them is used; it reads as zeros.

        Raises:
            CapacityError: the system has no more memory; nothing was committed.
        """
        ...

    def decommit(self, group: str, slabs: Sequence[int]) -> None:
        """Give the memory of slabs back to the system; what their pages held is gone.

        Slabs without memory are left alone, so a new owner of an engine begins with a decommit of all.
        """
        ...

    def copy_out(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """Copy pages into host memory.

        Args:
            group: whose pages.
            pages: int [n], ids.
            buffer: uint8 [n, page_bytes], C-contiguous; row i becomes page `pages[i]`.
        """
        ...

    def copy_in(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """The reverse of `copy_out`: page `pages[i]` becomes row i."""
        ...

    def move(self, group: str, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy page `sources[i]` over page `targets[i]`, int [n] each; no page is both."""
        ...


def drawn_id(place: int) -> int:
    """Stands for the token at a place of the last drawing, in the inputs of the step behind it."""
    return -1 - place


class Drawing(Protocol):
    """Tokens that are being drawn from a step's logits.

    Attributes:
        feeds: whether the next step may begin before `collect`, with `drawn_id`s for these tokens.
    """

    @property
    def feeds(self) -> bool:
        """See above."""
        ...

    def collect(self) -> list[Sampled]:
        """Wait for the tokens, and so for the step; in the order of the states.

        To be called once, and once more only where Ctrl-C interrupted the wait.

        Raises:
            KvfoldError: the step failed.
        """
        ...


class Underway(Protocol):
    """A step that was begun. Its logits lie where the engine has them, until its next step.

    Whoever samples is the engine: where logits are on a GPU, tokens alone come to the host.
    """

    def logits(self, rows: slice = slice(None)) -> np.ndarray:
        """Rows of logits on the host, float32 [n, vocab_size], to be read at once; all by default.

        Raises:
            KvfoldError: the step failed.
        """
        ...

    def draw(self, rows: Sequence[int], states: Sequence[SamplingState]) -> Drawing:
        """Draw the next token of each state from its row, as `BatchSampler`; drawings before are collected.

        Args:
            rows: of the logits, growing; one for each state.
            states: each once; none only waits for the step.

        Raises:
            KvfoldError: the step failed.
        """
        ...


class Engine(Protocol):
    """Executes steps; its KV pools stay bound in place between them."""

    @property
    def info(self) -> EngineInfo:
        """Constant for the engine's life."""
        ...

    @property
    def pages(self) -> PageStore:
        """The bytes of its pools, which no step may touch outside of committed slabs."""
        ...

    def begin(self, step: StepInputs) -> Underway:
        """Begin one step, which may still be under way when this returns; `step` may be overwritten then.

        It reads and updates the caches in place, before whatever is asked of the engine next, and after the
        step before it. Of that one nothing is asked any more but to collect what was drawn.
        """
        ...

    def execute(self, step: StepInputs) -> np.ndarray:
        """Run one step and return all its logits, float32 [R, vocab_size], valid until the next step."""
        ...

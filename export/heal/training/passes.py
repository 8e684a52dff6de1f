"""How many tokens go through the model at a time: what a CPU is fastest with, what a GPU has memory for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from kvfold.plugins.contract.errors import HealingError

ON_A_CPU = 2_048  # tokens: its caches want no more
MEASURED = 16_384  # tokens of a GPU's first pass: what it then needs for a token is what larger ones will
SHARE = 0.8  # of the free memory, so that what grows otherwise and fragments have room


class Memory(Protocol):
    """What is asked of a device's memory, in bytes."""

    def begin(self) -> None:
        """Count from here."""

    def most_in_use(self) -> int:
        """The most that was in use since `begin`, beyond what was in use then."""

    def free(self) -> int:
        """What may still be allocated."""


class GpuMemory:
    """A GPU's, as PyTorch's allocator has it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, 0

    def begin(self) -> None:
        """Count from here."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def most_in_use(self) -> int:
        """The most that was in use since `begin`, beyond what was in use then."""
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def free(self) -> int:
        """What may still be allocated: the driver's free memory, and what the allocator holds unused."""
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + held


class Passes:
    """The size of a pass; on a GPU the first one measures what a token takes, and then it grows.

    Attributes:
        tokens: of a pass; one sequence may be longer.
    """

    def __init__(self, memory: Memory | None) -> None:
        """`memory` limits a pass; without, passes are a CPU's."""
        self.tokens = ON_A_CPU if memory is None else MEASURED
        self._memory = memory

    @classmethod
    def on(cls, device: torch.device) -> Passes:
        """Those of a device."""
        return cls(GpuMemory(device) if device.type == "cuda" else None)

    def rows(self, length: int) -> int:
        """How many sequences of a length a pass takes."""
        return max(1, self.tokens // length)

    def run(self, tokens: int, work: Callable[[], float]) -> float:
        """One pass of so many tokens; the first is measured."""
        memory, self._memory = self._memory, None
        if memory is None:
            return work()
        memory.begin()
        result = work()
        self.tokens = max(1, int(SHARE * memory.free() * tokens / max(1, memory.most_in_use())))
        return result

    def halve(self, longest: int) -> None:
        """Memory did not suffice; `longest` is the longest sequence.

        Raises:
            HealingError: a pass has one sequence already.
        """
        if self.tokens <= longest:
            raise HealingError(
                f"the GPU has no memory for one sequence of {longest} tokens; set a shorter sequence_length "
                "in heal.text, end what else uses the GPU, or hide it to train on the CPU "
                "(CUDA_VISIBLE_DEVICES=)"
            )
        self._memory = None
        self.tokens //= 2

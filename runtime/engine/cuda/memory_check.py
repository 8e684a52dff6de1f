"""What an engine takes of a GPU's memory: all is counted, and refused, before any is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kvfold.plugins.contract.errors import CapacityError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.cuda.device_sampler import SamplerSizes
from kvfold.runtime.engine.cuda.staging import bind_step
from kvfold.runtime.engine.cuda.step_shape import largest_shape
from kvfold.runtime.engine.engine_config import StepLimits

MIB = 1 << 20
# Left for what cannot be asked beforehand: captured graphs, attention kernels, each context's own state. A
# guess, not measured.
MARGIN = 256 * MIB


@dataclass(frozen=True)
class StepSizes:
    """Bytes that the largest step of an engine needs.

    Attributes:
        inputs: of the binding table.
        logits: of the output.
        sampling: of all that a sampler may come to hold.
    """

    inputs: int
    logits: int
    sampling: int

    @classmethod
    def of(cls, profiles: Sequence[StepLimits], plan: FoldPlan, vocab_size: int, sampled: int) -> Self:
        """Over all profiles; `sampled`: most rows that are sampled at once."""
        return cls(
            inputs=max(bind_step(largest_shape(limits, plan), plan).nbytes for limits in profiles),
            logits=4 * vocab_size * max(limits.max_logits for limits in profiles),
            sampling=SamplerSizes.of(sampled, vocab_size).together,
        )

    @property
    def parts(self) -> dict[str, int]:
        """For `check_memory`."""
        return {"step inputs": self.inputs, "logits": self.logits, "sampling": self.sampling}


def check_memory(parts: Mapping[str, int], free: int, advice: str) -> None:
    """Refuse an engine whose parts do not fit.

    Args:
        parts: bytes by what they are for.
        free: bytes nobody held before the first part was taken.
        advice: what to lower besides kv_cache_bytes, as the end of a sentence.

    Raises:
        CapacityError: with every part, and what to lower.
    """
    needed = sum(parts.values())
    if needed <= free - MARGIN:
        return
    listed = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items())
    raise CapacityError(
        f"the engine needs {_mib(needed)} of GPU memory: {listed}; {_mib(free)} are free, of which "
        f"{_mib(MARGIN)} are kept for CUDA graphs and kernels. Lower kv_cache_bytes, end other programs on "
        f"the GPU, or {advice}"
    )


def _mib(size: int) -> str:
    return f"{-(-size // MIB):,} MiB"

"""What is measured, as data: the workloads, the metrics they give, and their prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvfold.pipeline.bench.contenders.contender import CacheLoad

Unit = Literal["tokens/s", "ms", "MiB", "s"]

# Ids below are special tokens in every tokenizer we know; a prompt of them is not like text.
FIRST_ORDINARY_TOKEN = 1000


@dataclass(frozen=True)
class Metric:
    """One column of the table.

    Attributes:
        key: name in `bench.json`.
        title: name in the table.
        unit: of its values; of tokens/s the largest is best, of every other unit the smallest.
    """

    key: str
    title: str
    unit: Unit


@dataclass(frozen=True)
class Single:
    """One sequence with a cold cache: prefill of its context, then decoding after it.

    Attributes:
        context: tokens of the prompt.
        new_tokens: decoded tokens that are timed; 0 measures prefill alone.
    """

    context: int
    new_tokens: int

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Prefill is context / time to first token; decode is the steady rate after that token."""
        prefill = Metric(f"prefill_{self.context}", f"prefill {self.context}", "tokens/s")
        decode = Metric(f"decode_{self.context}", f"decode at {self.context}", "tokens/s")
        return (prefill, decode) if self.new_tokens else (prefill,)

    @property
    def cache_load(self) -> CacheLoad:
        """What is in the KV cache at its end."""
        return CacheLoad(1, self.context + self.new_tokens + 1)


@dataclass(frozen=True)
class Batch:
    """Several sequences at once.

    Attributes:
        sequences: how many.
        context: tokens of each prompt.
        new_tokens: decoded tokens of each sequence.
    """

    sequences: int
    context: int
    new_tokens: int

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Decoded tokens of all sequences per second, while all of them decode."""
        return (Metric(f"decode_batch_{self.sequences}", f"{self.sequences} at once", "tokens/s"),)

    @property
    def cache_load(self) -> CacheLoad:
        """What is in the KV cache at its end."""
        return CacheLoad(self.sequences, self.context + self.new_tokens + 1)


@dataclass(frozen=True)
class SecondTurn:
    """A conversation's second turn, whose first turn the contender may still have in its cache.

    Attributes:
        conversation: tokens of the first turn's prompt.
        reply: tokens of the first turn's reply.
        message: new tokens of the second turn.
    """

    conversation: int
    reply: int
    message: int

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Time to the second turn's first token, and of its message alone in an empty conversation."""
        return (
            Metric("second_turn", f"2nd turn of {self.conversation}", "ms"),
            Metric("message_alone", f"its {self.message} new tokens alone", "ms"),
        )

    @property
    def cache_load(self) -> CacheLoad:
        """What is in the KV cache at its end."""
        return CacheLoad(1, self.conversation + self.reply + self.message + 1)


Workload = Single | Batch | SecondTurn

FULL: tuple[Workload, ...] = (
    Single(context=128, new_tokens=64),
    Single(context=512, new_tokens=0),
    Single(context=2048, new_tokens=64),
    Single(context=7000, new_tokens=64),
    Batch(sequences=8, context=128, new_tokens=64),
    SecondTurn(conversation=2000, reply=16, message=64),
)
QUICK: tuple[Workload, ...] = (
    Single(context=128, new_tokens=16),
    Single(context=512, new_tokens=0),
    Batch(sequences=8, context=128, new_tokens=16),
    SecondTurn(conversation=500, reply=4, message=64),
)
# What a GPU is bought for: many sequences at once.
FULL_ON_GPU: tuple[Workload, ...] = (
    Single(context=128, new_tokens=256),
    Single(context=7000, new_tokens=64),
    Batch(sequences=64, context=128, new_tokens=256),
    Batch(sequences=256, context=128, new_tokens=256),
    SecondTurn(conversation=2000, reply=16, message=64),
)
SETS: dict[str, tuple[Workload, ...]] = {"full": FULL, "quick": QUICK, "full_on_gpu": FULL_ON_GPU}
WARM_UP: tuple[Workload, ...] = (  # no longer than the shortest that is measured
    Single(context=128, new_tokens=4),
    Batch(sequences=8, context=16, new_tokens=4),
)

# Facts of the process itself, next to what the workloads give.
LOAD = Metric("load", "load", "s")
MEMORY = Metric("peak_memory", "peak memory", "MiB")


def list_metrics(workloads: Sequence[Workload]) -> list[Metric]:
    """Every metric of a run, in the table's order."""
    return [metric for workload in workloads for metric in workload.metrics] + [MEMORY, LOAD]


def choose_workloads(name: str, context_length: int) -> list[Workload]:
    """Those of a set that a model of this context can run."""
    return [workload for workload in SETS[name] if workload.cache_load.length <= context_length]


def write_prompt(length: int, vocab_size: int, seed: str) -> list[int]:
    """Ordinary token ids, the same for all contenders; another seed shares no prefix, so caches stay cold."""
    generator = random.Random(seed)
    first = min(FIRST_ORDINARY_TOKEN, vocab_size // 2)
    return [generator.randrange(first, vocab_size) for _ in range(length)]

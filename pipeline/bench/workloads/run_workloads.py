"""Run workloads on a loaded contender; each gives one sample of each of its metrics."""

from __future__ import annotations

from collections.abc import Sequence

from kvfold.pipeline.bench.contenders.contender import Contender
from kvfold.pipeline.bench.workloads.workloads import (
    WARM_UP,
    Batch,
    SecondTurn,
    Single,
    Workload,
    write_prompt,
)


def measure(
    contender: Contender, workloads: Sequence[Workload], vocab_size: int, seed: str
) -> dict[str, float]:
    """Warm up, then run every workload once; metric keys to values in their units."""
    values: dict[str, float] = {}
    for workload in WARM_UP:
        run_workload(contender, workload, vocab_size, f"{seed} warm-up {workload}")
    for workload in workloads:
        values |= run_workload(contender, workload, vocab_size, f"{seed} {workload}")
    return values


def run_workload(contender: Contender, workload: Workload, vocab_size: int, seed: str) -> dict[str, float]:
    """One sample of each metric of one workload."""
    keys = [metric.key for metric in workload.metrics]
    match workload:
        case Single():
            values = _run_single(contender, workload, write_prompt(workload.context, vocab_size, seed))
        case Batch(sequences, context, new_tokens):
            prompts = [write_prompt(context, vocab_size, f"{seed} {index}") for index in range(sequences)]
            values = [contender.generate(prompts, new_tokens + 1).decode_rate]
        case SecondTurn():
            values = _converse(contender, workload, vocab_size, seed)
    return dict(zip(keys, values, strict=True))


def _run_single(contender: Contender, workload: Single, prompt: list[int]) -> list[float]:
    generation = contender.generate([prompt], workload.new_tokens + 1)
    prefill = workload.context / generation.time_to_first_token
    return [prefill, generation.decode_rate] if workload.new_tokens else [prefill]


def _converse(contender: Contender, workload: SecondTurn, vocab_size: int, seed: str) -> list[float]:
    """Milliseconds to the second turn's first token, and of its message alone with a cold cache."""
    first = write_prompt(workload.conversation, vocab_size, f"{seed} first")
    message = write_prompt(workload.message, vocab_size, f"{seed} second")
    alone = write_prompt(workload.message, vocab_size, f"{seed} alone")
    reply = contender.generate([first], workload.reply).tokens[0]
    turn = contender.generate([[*first, *reply, *message]], 1)
    cold = contender.generate([alone], 1)
    return [1000 * turn.time_to_first_token, 1000 * cold.time_to_first_token]

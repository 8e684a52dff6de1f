"""Run workloads on a loaded subject; each gives one sample of each of its metrics."""

from __future__ import annotations

from collections.abc import Sequence

from kvfold.pipeline.bench.contender import Subject
from kvfold.pipeline.bench.workloads import Batch, Completion, SecondTurn, Workload, write_prompt

WARM_UP: tuple[Workload, ...] = (
    Completion(context=128, new_tokens=4),
    Batch(sequences=8, context=16, new_tokens=4),
)


def measure(subject: Subject, workloads: Sequence[Workload], vocab_size: int, seed: str) -> dict[str, float]:
    """Warm up, then run every workload once; metric keys to values in their units."""
    values: dict[str, float] = {}
    for workload in WARM_UP:
        run_workload(subject, workload, vocab_size, f"{seed} warm-up {workload}")
    for workload in workloads:
        values |= run_workload(subject, workload, vocab_size, f"{seed} {workload}")
    return values


def run_workload(subject: Subject, workload: Workload, vocab_size: int, seed: str) -> dict[str, float]:
    """One sample of each metric of one workload."""
    keys = [metric.key for metric in workload.metrics]
    match workload:
        case Completion():
            values = _complete(subject, workload, write_prompt(workload.context, vocab_size, seed))
        case Batch(sequences, context, new_tokens):
            prompts = [write_prompt(context, vocab_size, f"{seed} {index}") for index in range(sequences)]
            values = [subject.generate(prompts, new_tokens + 1).decode_rate]
        case SecondTurn():
            values = _converse(subject, workload, vocab_size, seed)
    return dict(zip(keys, values, strict=True))


def _complete(subject: Subject, workload: Completion, prompt: list[int]) -> list[float]:
    generation = subject.generate([prompt], workload.new_tokens + 1)
    prefill = workload.context / generation.time_to_first_token
    return [prefill, generation.decode_rate] if workload.new_tokens else [prefill]


def _converse(subject: Subject, workload: SecondTurn, vocab_size: int, seed: str) -> list[float]:
    """Milliseconds to the second turn's first token, and of its message alone with a cold cache."""
    first = write_prompt(workload.conversation, vocab_size, f"{seed} first")
    message = write_prompt(workload.message, vocab_size, f"{seed} second")
    alone = write_prompt(workload.message, vocab_size, f"{seed} alone")
    reply = subject.generate([first], workload.reply).tokens[0]
    turn = subject.generate([[*first, *reply, *message]], 1)
    cold = subject.generate([alone], 1)
    return [1000 * turn.time_to_first_token, 1000 * cold.time_to_first_token]

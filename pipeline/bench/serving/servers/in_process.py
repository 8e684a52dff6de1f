"""The same work without a server: LLM in a process of its own, that says what it cost.

Run as a module: the job is the first argument, the answer goes to standard output's last line.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvfold.pipeline.bench.workloads.workloads import write_prompt
from kvfold.plugins.contract.errors import TargetError

if TYPE_CHECKING:
    from kvfold.runtime.llm.llm import LLM

Way = Literal["generate", "stream"]
SHOWN = 2000  # characters of what a failed one printed


@dataclass(frozen=True)
class InProcess:
    """Requests to an LLM, in waves of so many together.

    Attributes:
        bundle: its folder.
        zero_cost: over an engine that computes nothing.
        way: `generate` for a whole wave in one call; `stream` for one after the other.
        at_once: requests of a wave.
        waves: how many are measured, after one that is not.
        vocab_size: prompts are written from ids below it.
        prompt_tokens: of each request, no prefix shared.
        new_tokens: of each reply.
        threads: of the engine; 0 for its default.
        seed: makes prompts that no other job has.
        pause: seconds of a step of the engine that computes nothing.
        sampling: fields of SamplingParams; greedy without any.
    """

    bundle: str
    zero_cost: bool
    way: Way
    at_once: int
    waves: int
    vocab_size: int
    prompt_tokens: int
    new_tokens: int
    threads: int
    seed: str
    pause: float = 0.0
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """That are measured."""
        return self.at_once * self.waves


@dataclass(frozen=True)
class Cost:
    """What a job took.

    Attributes:
        seconds: on the wall.
        cpu_seconds: of all threads.
        first_tokens: seconds to each reply's first text; of `stream` alone.
    """

    seconds: float
    cpu_seconds: float
    first_tokens: tuple[float, ...]


def run_in_process(job: InProcess) -> Cost:
    """Do a job in a fresh process.

    Raises:
        TargetError: it failed; the message holds the end of what it printed.
    """
    command = [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(job))]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode:
        raise TargetError(f"LLM.{job.way} of {job.bundle} failed:\n{(run.stdout + run.stderr)[-SHOWN:]}")
    seconds, cpu_seconds, first_tokens = json.loads(run.stdout.splitlines()[-1])
    return Cost(seconds, cpu_seconds, tuple(first_tokens))


def do_job(job: InProcess) -> Cost:
    """Do a job in this process."""
    llm = _load(job)
    _wave(llm, job, "warm-up")
    first_tokens: list[float] = []
    started, cpu_started = time.perf_counter(), time.process_time()
    for number in range(job.waves):
        first_tokens += _wave(llm, job, str(number))
    return Cost(time.perf_counter() - started, time.process_time() - cpu_started, tuple(first_tokens))


def _wave(llm: LLM, job: InProcess, which: str) -> list[float]:
    from kvfold.runtime.sampling.params import SamplingParams

    params = SamplingParams(max_tokens=job.new_tokens, ignore_eos=True, **job.sampling)
    prompts = [
        write_prompt(job.prompt_tokens, job.vocab_size, f"{job.seed} {which} {index}")
        for index in range(job.at_once)
    ]
    if job.way == "generate":
        llm.generate(prompts, params)
        return []
    first_tokens = []
    for prompt in prompts:
        started = time.perf_counter()
        stream = llm.stream(prompt, params)
        next(stream)
        first_tokens.append(time.perf_counter() - started)
        for _ in stream:
            pass
    return first_tokens


def _load(job: InProcess) -> LLM:
    from kvfold.pipeline.bench.serving.servers.zero_cost import load_zero_cost
    from kvfold.runtime.llm.llm import LLM
    from kvfold.runtime.runtime_config import RuntimeConfig

    config = RuntimeConfig(max_num_seqs=job.at_once, threads=job.threads)
    if job.zero_cost:
        return load_zero_cost(Path(job.bundle), config, job.pause)
    return LLM.load(job.bundle, config)


if __name__ == "__main__":
    print(json.dumps(dataclasses.astuple(do_job(InProcess(**json.loads(sys.argv[1]))))))

"""What HTTP costs: CPU of a streamed token, and of a request, over the same work in process."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvfold.pipeline.bench.serving.client.load_summary import LoadSummary, summarise
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.scenarios.served_load import serve_costed
from kvfold.pipeline.bench.serving.scenarios.served_prompts import completions, exactly
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.in_process import InProcess, run_in_process
from kvfold.pipeline.bench.serving.servers.started_server import RunningServer, run_server
from kvfold.plugins.contract.progress import Progress

AT_ONCE, PROMPT_TOKENS = 64, 20


@dataclass(frozen=True)
class Work:
    """What is paid for.

    Attributes:
        title: of its figures.
        unit: of its figures.
        scale: from seconds to the unit.
        tokens: of each reply; replies of one are not streamed.
        waves: of `AT_ONCE` requests, that are measured.
        pause: seconds of a step, so that each token of a stream comes by itself.
        limit: of what HTTP adds, in the unit.
    """

    title: str
    unit: str
    scale: float
    tokens: int
    waves: int
    pause: float
    limit: float

    @property
    def count(self) -> int:
        """Tokens that are measured."""
        return AT_ONCE * self.waves * self.tokens


@dataclass
class Samples:
    """Of one kind of work, a round each; in its unit."""

    in_process: list[float] = field(default_factory=list)
    over_http: list[float] = field(default_factory=list)
    tokens_a_piece: list[float] = field(default_factory=list)
    loads: list[LoadSummary] = field(default_factory=list)


TOKENS = Work(
    f"CPU of a streamed token, {AT_ONCE} at once", "µs", 1e6, tokens=128, waves=4, pause=0.02, limit=40.0
)
REQUESTS = Work("CPU of a request of one token", "ms", 1e3, tokens=1, waves=32, pause=0.0, limit=0.5)
KINDS = (TOKENS, REQUESTS)


async def measure(bench: Bench, progress: Progress) -> Measured:
    """Both kinds, each round in process first and over HTTP then."""
    steps = Steps(progress, 2 * len(KINDS) * bench.rounds)
    found = {work: Samples() for work in KINDS}
    for number in range(bench.rounds):
        for work, samples in found.items():
            steps.next(f"{work.title}, in process")
            cost = run_in_process(_job(bench, work, number))
            samples.in_process.append(work.scale * cost.cpu_seconds / work.count)
        for work, samples in found.items():
            doing = steps.next(f"{work.title}, over HTTP")
            async with run_server(bench.zero_cost(AT_ONCE, work.pause), bench.logs) as server:
                await _serve(server, bench, work, number, samples, doing)
    figures = [figure for work, samples in found.items() for figure in _figures(work, samples)]
    return Measured(tuple(figures), {work.title: tuple(samples.loads) for work, samples in found.items()})


def _job(bench: Bench, work: Work, number: int) -> InProcess:
    return InProcess(
        bundle=str(bench.bundle),
        zero_cost=True,
        way="generate",
        at_once=AT_ONCE,
        waves=work.waves,
        vocab_size=bench.vocab_size,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=work.tokens,
        threads=0,
        seed=f"{work.title} {number}",
        pause=work.pause,
    )


async def _serve(
    server: RunningServer, bench: Bench, work: Work, number: int, samples: Samples, progress: Progress
) -> None:
    """The server's CPU, after a wave that does not count."""
    wanted = exactly(work.tokens, stream=work.tokens > 1)
    for waves, seed in ((1, "warm-up"), (work.waves, "measured")):
        jobs = completions(AT_ONCE * waves, PROMPT_TOKENS, wanted, bench.vocab_size, f"{seed} {number}")
        served = await serve_costed(server, jobs, AT_ONCE, progress)
    samples.over_http.append(work.scale * served.cpu_seconds / work.count)
    pieces = sum(len(outcome.arrivals) for outcome in served.load.outcomes)
    samples.tokens_a_piece.append(served.load.completion_tokens / pieces)
    samples.loads.append(summarise(served.load))


def _figures(work: Work, samples: Samples) -> tuple[Figure, ...]:
    pairs = zip(samples.over_http, samples.in_process, strict=True)
    added = tuple(http - own for http, own in pairs)
    pieces = Figure(f"{work.title}, tokens that came together", "", tuple(samples.tokens_a_piece))
    together = (pieces,) if work.tokens > 1 else ()
    return (
        Figure(f"{work.title}, in process", work.unit, tuple(samples.in_process)),
        Figure(f"{work.title}, over HTTP", work.unit, tuple(samples.over_http)),
        Figure(f"{work.title}, added", work.unit, added, Demand("at most", work.limit)),
        *together,
    )

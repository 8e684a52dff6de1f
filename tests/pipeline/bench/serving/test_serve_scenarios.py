"""Each scenario against a fake server, in short: figures that are right, and demands that can be missed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import pytest

from kvfold.pipeline.bench.serving.all_scenarios import SCENARIOS
from kvfold.pipeline.bench.serving.client.asks import Chat, Single
from kvfold.pipeline.bench.serving.scenario_names import ON_REQUEST, TITLES, USUAL
from kvfold.pipeline.bench.serving.scenarios import (
    abort_requests,
    added_first_token,
    beside_in_process,
    beside_peers,
    cpu_cost,
    end_under_load,
    held_to_schema,
    overload,
    own_work,
)
from kvfold.pipeline.bench.serving.scenarios.long import soak, soak_jobs
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Measure
from kvfold.pipeline.bench.serving.scenarios.served_prompts import chats, completions, exactly
from kvfold.pipeline.bench.serving.serve_results import Figure, Measured
from kvfold.pipeline.bench.serving.servers.in_process import Cost, InProcess
from kvfold.pipeline.bench.serving.servers.llama_server import TITLE as PEER
from kvfold.pipeline.bench.serving.servers.llama_server import LlamaServer
from kvfold.pipeline.bench.serving.servers.started_server import ServerCommand
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.contract.progress import unheard
from tests.pipeline.bench.serving.fake_openai_server import PAGES, FakeServer, fake_command, serving, words_of


@dataclass(frozen=True)
class FakeBench(Bench):
    """A bench whose servers are fakes with these options."""

    options: dict[str, float] = field(default_factory=dict)

    def server(
        self, at_once: int, kv_cache_bytes: int | None = None, state_dir: Path | None = None
    ) -> ServerCommand:
        return ServerCommand("kvfold fake", fake_command(**self.options), "/health/ready")

    def zero_cost(self, at_once: int, pause: float = 0.0) -> ServerCommand:
        return self.server(at_once)


def bench_of(folder: Path, **options: float) -> FakeBench:
    return FakeBench(bundle=folder / "bundle", vocab_size=5000, logs=folder, rounds=1, options=options)


def answer(measure: Measure, bench: Bench) -> Measured:
    async def run() -> Measured:
        return await measure(bench, unheard)

    return asyncio.run(run())


def figure(found: Measured, part: str) -> Figure:
    """The one figure whose title has this part."""
    (only,) = (figure for figure in found.figures if part in figure.title)
    return only


def set_all(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **values: object) -> None:
    for name, value in values.items():
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)


def cost_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch, cost: Cost) -> list[InProcess]:
    """In-process work that costs this; what was asked for."""
    asked: list[InProcess] = []

    def run(job: InProcess) -> Cost:
        asked.append(job)
        return cost

    monkeypatch.setattr(module, "run_in_process", run)
    return asked


def test_every_scenario_has_its_name_and_the_long_ones_are_asked_for() -> None:
    assert SCENARIOS.keys() == TITLES.keys()
    assert set(USUAL) | set(ON_REQUEST) == set(TITLES)
    assert not set(USUAL) & set(ON_REQUEST)


def test_cpu_is_the_server_s_over_the_same_work_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, cpu_cost, AT_ONCE=8)
    asked = cost_of(cpu_cost, monkeypatch, Cost(1.0, 0.001, ()))
    found = answer(cpu_cost.measure, replace(bench_of(tmp_path), rounds=2))
    counts = {work.title: 8 * work.waves * work.tokens for work in cpu_cost.KINDS}
    for work in cpu_cost.KINDS:
        own = figure(found, f"{work.title}, in process")
        http = figure(found, f"{work.title}, over HTTP")
        added = figure(found, f"{work.title}, added")
        assert own.samples == pytest.approx([work.scale * 0.001 / counts[work.title]] * 2)
        assert all(sample > own.value for sample in http.samples), "a server in Python costs something"
        assert added.samples == pytest.approx([a - b for a, b in zip(http.samples, own.samples, strict=True)])
        assert added.demand is not None and added.demand.limit == work.limit
        assert [load.completion_tokens for load in found.loads[work.title]] == [counts[work.title]] * 2
    assert figure(found, "tokens that came together").samples == (1.0, 1.0)
    assert {job.zero_cost for job in asked} == {True}
    assert [job.pause for job in asked] == [cpu_cost.TOKENS.pause, 0.0] * 2
    assert [job.requests * job.new_tokens for job in asked[:2]] == list(counts.values())


def test_a_server_that_refuses_gives_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, cpu_cost, AT_ONCE=8)
    cost_of(cpu_cost, monkeypatch, Cost(1.0, 0.001, ()))
    with pytest.raises(TargetError, match=r"did not answer all: .*'refused': .*busy"):
        answer(cpu_cost.measure, bench_of(tmp_path, at_most=2))


def test_what_a_slow_server_adds_to_the_first_token_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, added_first_token, REQUESTS=5)
    asked = cost_of(added_first_token, monkeypatch, Cost(1.0, 1.0, (0.010, 0.001, 0.002)))
    found = answer(added_first_token.measure, bench_of(tmp_path, delay=0.05))
    for engine in ("zero-cost engine", "real engine"):
        added = figure(found, f"{engine}, p50, added")
        assert all(45 <= sample < 500 for sample in added.samples)
        assert added.met is False
        assert figure(found, f"{engine}, p50, in process").samples == (2.0,)
    assert [job.zero_cost for job in asked] == [True, False]


def test_the_runtime_s_own_work_is_by_token_and_by_kind(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [replace(kind, requests=kind.at_once, prompt_tokens=32, limit=0) for kind in own_work.STEP_KINDS]
    set_all(monkeypatch, own_work, STEP_KINDS=(replace(short[0], limit=1e6), short[1]))
    asked = cost_of(own_work, monkeypatch, Cost(1.0, 0.3, ()))
    found = answer(own_work.measure, replace(bench_of(tmp_path), bundle=small_bundle))
    tokens = own_work.AT_ONCE * own_work.WAVES * own_work.NEW_TOKENS
    assert [figure.value for figure in found.figures[:4]] == pytest.approx([0.3e6 / tokens] * 4)
    assert [figure.met for figure in found.figures] == [False, True, True, True, True, False]
    assert all(figure.value > 0 for figure in found.figures)
    assert [job.sampling for job in asked] == [kind.sampling for kind in own_work.KINDS]
    assert {job.zero_cost for job in asked} == {True}


def test_a_schema_that_slows_streams_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, held_to_schema, NEW_TOKENS=10)
    found = answer(held_to_schema.measure, bench_of(tmp_path, delay=0.02, form_delay=0.06))
    free, held = (figure(found, f"streams, {kind}").value for kind in held_to_schema.KINDS)
    added = figure(found, "what a schema adds")
    assert added.value == pytest.approx(100 * (held - free) / free) and added.value > 100
    assert added.met is False
    assert [load.completion_tokens for load in found.loads["free"]] == [8 * 10]


def test_the_share_of_streams_is_by_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, beside_in_process, AT_ONCE=4, NEW_TOKENS=4)
    cost_of(beside_in_process, monkeypatch, Cost(0.1, 0.01, ()))
    found = answer(beside_in_process.measure, bench_of(tmp_path, delay=0.1))
    assert figure(found, "LLM.generate").value == pytest.approx(160)
    share = figure(found, "share")
    assert share.met is False and 0 < share.value <= 25


@dataclass(frozen=True)
class FakePeer(LlamaServer):
    """A peer of so many seconds a token."""

    delay: float = 0.0

    def command(self, at_once: int, length: int, threads: int) -> ServerCommand:
        return ServerCommand(PEER, fake_command(delay=self.delay), "/health/ready", keeps_alive=False)


def test_bundles_stand_beside_their_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(bundle: Path, options: object) -> ServerCommand:
        return ServerCommand(f"kvfold {bundle.name}", fake_command(), "/health/ready")

    few = beside_peers.Workload(
        "requests", 2.0, lambda _, seed: [*completions(16, 32, exactly(4), 5000, seed)]
    )
    talks = beside_peers.Workload("chats", 3.0, lambda _, seed: [*chats(8, 3, 5, exactly(4), seed)])
    set_all(monkeypatch, beside_peers, AT_ONCE=8, WORKLOADS=(few, talks), kvfold_server=command)
    peer = FakePeer(Path("llama-server"), Path("model.gguf"), delay=0.05)
    found = answer(
        beside_peers.measure, replace(bench_of(tmp_path), rounds=2, peer=peer, beside=(Path("other"),))
    )
    for work in (few, talks):
        for title in ("kvfold bundle", "kvfold other"):
            lead = figure(found, f"{title} over {PEER}, {work.title}")
            assert lead.unit == "x" and lead.value > 1
            assert lead.demand is not None and lead.demand.limit == work.lead
            assert len(found.loads[f"{title}, {work.title}"]) == 2
        rates = [f for f in found.figures if f.unit == "requests/s" and f.title.endswith(work.title)]
        assert [f.title.split(",")[0] for f in rates] == ["kvfold bundle", "kvfold other", PEER]
    assert found.loads[f"{PEER}, requests"][0].endings == {"complete": 16}
    assert found.loads[f"{PEER}, chats"][0].endings == {"complete": 24}
    assert (
        f"{PEER}, requests: 1,024 tokens of prompts, of which 512 from its cache, and 128 of replies."
        in found.notes
    )


def test_the_workloads_are_as_they_say() -> None:
    requests, talks = (work.jobs(5000, "seed") for work in beside_peers.WORKLOADS)
    assert len(requests) % beside_peers.AT_ONCE == 0 and len(talks) == beside_peers.AT_ONCE
    prompts = [
        job.ask.body["prompt"]
        for job in requests
        if isinstance(job, Single) and isinstance(job.ask.body, dict)
    ]
    assert {len(prompt) for prompt in prompts} == {256}
    assert len({tuple(prompt[:16]) for prompt in prompts}) == len(requests), "a prefix is shared"
    assert all(isinstance(job, Chat) and len(job.messages) == 8 for job in talks)


def test_a_server_that_runs_already_is_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = beside_peers.Workload(
        "requests", 2.0, lambda _, seed: [*completions(8, 32, exactly(2), 5000, seed)]
    )
    bench = bench_of(tmp_path)
    set_all(monkeypatch, beside_peers, AT_ONCE=8, WORKLOADS=(few,), kvfold_server=lambda *_: bench.server(8))

    async def run() -> Measured:
        async with serving(FakeServer()) as url:
            return await beside_peers.measure(replace(bench, urls=(url,)), unheard)

    found = asyncio.run(run())
    (title,) = (key for key in found.loads if key.startswith("http://127.0.0.1"))
    assert len(found.loads[title]) == 1
    assert [f.title for f in found.figures if "CPU" in f.unit] == ["kvfold fake, requests"]


def test_aborts_that_cost_pages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, abort_requests, LEAVERS=3, ABORTS=30, ABORT_SECONDS=0.2)
    found = answer(abort_requests.measure, bench_of(tmp_path, delay=0.01))
    assert figure(found, "pages lost").value == 0
    assert figure(found, "pages lost").met is True
    free, over = (f for f in found.figures if "pages free" in f.title)
    assert len(free.samples) == 3
    assert all(a > b for a, b in zip(free.samples, over.samples, strict=True))
    (load,) = found.loads["aborts"]
    assert load.endings["aborted"] > 20
    monkeypatch.setattr(abort_requests, "REST_SECONDS", 2.0)
    losing = answer(abort_requests.measure, bench_of(tmp_path, delay=0.01, loses=1))
    lost = figure(losing, "pages lost")
    assert lost.met is False and 20 < lost.value < PAGES


def overloaded(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: float) -> Measured:
    set_all(monkeypatch, overload, SECONDS=3.0, SETTLED=(0.0, 1.0), LAST=1.0, CAPACITY_REQUESTS=40, AT_ONCE=4)
    return answer(overload.measure, bench_of(folder, delay=0.002, at_most=4, **options))


def test_overload_is_refused_and_the_rest_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overloaded(tmp_path, monkeypatch)
    assert next(f for f in found.figures if f.title == "refused").value > 50
    for title in ("other than 429", "without Retry-After", "neither answered"):
        assert figure(found, title).value == 0
    assert figure(found, "of capacity").value > 30
    assert {200, 429} == found.loads["overload"][0].statuses.keys()


def test_overload_that_grows_or_refuses_otherwise_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = overloaded(tmp_path, monkeypatch, refusal=503, grows=1 << 18)
    assert figure(found, "other than 429").met is False
    assert figure(found, "memory").met is False


@pytest.mark.parametrize("drops", [0, 1])
def test_streams_that_sigterm_breaks_are_found(
    drops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, end_under_load, SIGNAL_AFTER=0.5, CLIENTS=4, NEW_TOKENS=100)
    found = answer(end_under_load.measure, bench_of(tmp_path, delay=0.02, drops=drops))
    whole = figure(found, "did not end whole")
    assert whole.met is (drops == 0)
    assert figure(found, "new request got in").value == 0
    assert figure(found, "did not end with 0").value == 0
    assert figure(found, "readiness").met is True


@pytest.mark.parametrize(("text", "other"), [(None, 0), ("something else", 1)])
def test_a_soak_compares_what_it_kept_with_cold_replies(
    text: str | None, other: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, soak, bytes_of_sequences=lambda bundle, count: 1 << 20)
    monkeypatch.setattr(soak_jobs, "BAD", soak_jobs.BAD[:1])
    monkeypatch.setattr(soak_jobs, "is_place", lambda text: True)
    monkeypatch.setattr(soak_jobs, "LEAVES_WITHIN", 0.05)
    monkeypatch.setattr(soak, "cold_replies", lambda bundle, bodies: [text or said(body) for body in bodies])
    bench = replace(bench_of(tmp_path, delay=0.001), soak_seconds=3.0)
    set_all(monkeypatch, soak, SETTLED=0.0, SPAN=0.5)
    found = answer(soak.measure, bench)
    assert figure(found, "should not have been").value == 0, found.notes
    assert figure(found, "pages lost").value == 0
    kept = figure(found, "others than cold ones")
    assert kept.title.startswith(f"of {soak_jobs.KEPT} replies")
    assert kept.value == other * soak_jobs.KEPT
    assert figure(found, "requests").value > 100


def said(body: dict[str, object]) -> str:
    """What the fake server replies."""
    assert isinstance(body["max_tokens"], int) and isinstance(body["messages"], list)
    return "".join(words_of(body["max_tokens"], len(body["messages"])))

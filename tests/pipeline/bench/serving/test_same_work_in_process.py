"""The same work without a server: costs, replies of a cold runtime, and an engine that computes nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from kvfold.pipeline.bench.serving.client.asks import Body, Single, Wanted, completion
from kvfold.pipeline.bench.serving.scenarios.long.soak import bytes_of_sequences
from kvfold.pipeline.bench.serving.scenarios.served_prompts import completions, exactly
from kvfold.pipeline.bench.serving.servers import in_process
from kvfold.pipeline.bench.serving.servers.cold_replies import cold_replies, reply_to_all
from kvfold.pipeline.bench.serving.servers.in_process import InProcess, do_job, run_in_process
from kvfold.pipeline.bench.serving.servers.kvfold_server import KvfoldOptions, kvfold_server, zero_cost_server
from kvfold.pipeline.bench.serving.servers.server_metrics import METRICS, read_state
from kvfold.pipeline.bench.serving.servers.started_server import ServerCommand, run_server
from kvfold.pipeline.bench.serving.servers.zero_cost import CURVES, load_zero_cost, shaped_logits
from kvfold.plugins.contract.errors import TargetError
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from tests.pipeline.tiny_bundles import run_recipe, write_recipes

VOCAB = 97
BYTE_LEVEL = {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.fixture(scope="module")
def served_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with a tokenizer whose texts llguidance can read."""
    folder = tmp_path_factory.mktemp("served")
    write_recipes(folder)
    path = folder / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "decoder": {"type": "ByteLevel"} | BYTE_LEVEL}))
    run_recipe(folder, "small", folder / "bundle", "build-cpu")
    return folder / "bundle"


def job_of(bundle: Path) -> InProcess:
    return InProcess(str(bundle), True, "generate", 4, 2, VOCAB, 8, 5, 1, "seed")


def test_a_zero_cost_engine_goes_through_all_of_the_runtime(small_bundle: Path) -> None:
    llm = load_zero_cost(small_bundle, RuntimeConfig(max_num_seqs=4))
    replies = llm.generate([[5, 6, 7]] * 3, SamplingParams(max_tokens=6, ignore_eos=True))
    assert {tuple(reply.token_ids) for reply in replies} == {(replies[0].token_ids[0],) * 6}
    assert replies[0].text and replies[0].usage.completion_tokens == 6


def test_its_logits_are_as_peaked_as_a_model_s_and_the_likeliest_is_one_token() -> None:
    logits = shaped_logits(2 * len(CURVES), 49_152, 260)
    weights = np.exp(logits.astype(np.float64))
    shares = weights / weights.sum(axis=1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(axis=1)
    assert entropy == pytest.approx([0.12, 0.71, 1.96, 3.05, 4.56] * 2, abs=0.01)
    assert (logits.argmax(axis=1) == 260).all()
    assert len({tuple(np.argsort(-row)[1:9]) for row in logits}) == len(logits)  # the others are in any order


def test_its_pauses_take_time_and_no_cpu(small_bundle: Path) -> None:
    paused = do_job(replace(job_of(small_bundle), waves=1, pause=0.1))
    assert paused.seconds >= 5 * 0.1
    assert paused.cpu_seconds < 0.4


@pytest.mark.parametrize("zero_cost", [True, False])
def test_a_wave_is_generated_and_paid_for(zero_cost: bool, small_bundle: Path) -> None:
    cost = do_job(replace(job_of(small_bundle), zero_cost=zero_cost))
    assert 0 < cost.cpu_seconds < 60 and cost.seconds > 0
    assert cost.first_tokens == ()


def test_streams_tell_when_each_begins(small_bundle: Path) -> None:
    job = replace(job_of(small_bundle), way="stream", at_once=1, waves=3)
    cost = do_job(job)
    assert len(cost.first_tokens) == job.requests == 3
    assert all(0 < first < cost.seconds for first in cost.first_tokens)


def test_the_warm_up_is_no_part_of_the_cost(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waves: list[str] = []

    def wave(llm: LLM, job: InProcess, which: str) -> list[float]:
        waves.append(which)
        end = perf_counter() + (0.5 if which == "warm-up" else 0.01)
        while perf_counter() < end:
            pass
        return []

    monkeypatch.setattr(in_process, "_wave", wave)
    assert do_job(job_of(small_bundle)).seconds < 0.4
    assert waves == ["warm-up", "0", "1"]


def test_a_process_of_its_own_says_the_same(small_bundle: Path) -> None:
    cost = run_in_process(replace(job_of(small_bundle), way="stream"))
    assert len(cost.first_tokens) == 8 and cost.cpu_seconds > 0
    with pytest.raises(TargetError, match=r"(?s)LLM.generate of .*absent failed:.*no bundle"):
        run_in_process(job_of(small_bundle / "absent"))


def test_cold_replies_are_the_runtime_s_own(small_bundle: Path) -> None:
    said: list[Body] = [{"role": "user", "content": "the cab of the cache"}]
    asks: list[Body] = [
        {"messages": said, "max_tokens": 12, "temperature": 0.0, "stream": True},
        {"messages": said, "max_tokens": 12, "temperature": 0.8, "seed": 3, "ignore_eos": True},
    ]
    llm = LLM.load(small_bundle)
    expected = [
        llm.chat([{"role": "user", "content": "the cab of the cache"}], params).text
        for params in (
            SamplingParams(max_tokens=12),
            SamplingParams(max_tokens=12, temperature=0.8, seed=3, ignore_eos=True),
        )
    ]
    assert expected[0] != expected[1]
    assert reply_to_all(small_bundle, [dict(ask) for ask in asks]) == expected
    assert cold_replies(small_bundle, asks) == expected


def test_a_cache_of_so_many_sequences_holds_them(small_bundle: Path) -> None:
    one, two = (bytes_of_sequences(small_bundle, count) for count in (1, 2))
    assert two == 2 * one
    llm = LLM.load(small_bundle, RuntimeConfig(kv_cache_bytes=one))
    assert llm.generator.loop.max_length >= llm.generator.loop.info.max_context_length


@pytest.mark.parametrize("kind", ["kvfold", "zero cost"])
def test_kvfold_s_server_answers_the_load(kind: str, served_bundle: Path, tmp_path: Path) -> None:
    """The real one, on the tiny model: what the bench asks for is what it understands."""
    options = KvfoldOptions(4, kv_cache_bytes=64 << 20, threads=1)
    make = kvfold_server if kind == "kvfold" else zero_cost_server

    async def run(command: ServerCommand) -> None:
        async with run_server(command, tmp_path) as server:
            for stream in (True, False):
                (single,) = completions(1, 16, exactly(6, stream), VOCAB, "x")
                (outcome,) = await Single(single.ask).run(server.client, perf_counter())
                assert outcome.ending == "complete", outcome
                assert (outcome.prompt_tokens, outcome.completion_tokens) == (16, 6)
            too_long = await server.client.send(completion([5] * 9999, Wanted(1)), perf_counter())
            assert (too_long.ending, too_long.status) == ("refused", 400)
            _, text = await server.client.get(METRICS)
            assert read_state(text).at_rest
            server.terminate()
            assert await server.exit_code() == 0

    asyncio.run(run(make(served_bundle, options)))

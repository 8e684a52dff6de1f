"""How `kvfold bench` measures: arithmetic of the workloads, prompts, and kvfold as their contender."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.pipeline.bench.bench import needed_limits
from kvfold.pipeline.bench.contenders.common_prefix import common_prefix
from kvfold.pipeline.bench.contenders.contender import ROUNDING, CacheLoad, Generation, Limits
from kvfold.pipeline.bench.contenders.kvfold import KvfoldContender, pages_in_use, runtime_config
from kvfold.pipeline.bench.workloads import run_workloads, workloads
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.plan_section import plan_for
from kvfold.pipeline.recipe.recipe_files import shipped_recipes
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.slabs import bytes_of_slabs
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from tests.runtime.byte_tokenizer import ByteTokenizer
from tests.runtime.harness import PLANS, check, in_use, make_llm, make_prompts
from tests.runtime.synthetic_engine import SyntheticEngine, make_plan

VOCAB = 5000


class Clockwork:
    """A contender with exact times: 1 ms a prompt token it has not seen, 10 ms a decoded token."""

    def __init__(self) -> None:
        self.cached: list[int] = []
        self.calls: list[tuple[int, int, int]] = []

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        known = common_prefix(self.cached, prompts[0]) if len(prompts) == 1 else 0
        self.calls.append((len(prompts), len(prompts[0]), new_tokens))
        self.cached = [*prompts[0], *[7] * new_tokens]
        first = 5.0 + 0.001 * (sum(len(prompt) for prompt in prompts) - known)
        times = [first + 0.010 * step for step in range(new_tokens)]
        return Generation(5.0, [[7] * new_tokens for _ in prompts], [times for _ in prompts])


def test_completion_times_prefill_and_decode_apart() -> None:
    values = run_workloads.run_workload(Clockwork(), workloads.Single(128, 16), VOCAB, "a")
    assert values == pytest.approx({"prefill_128": 1000.0, "decode_128": 100.0})


def test_prefill_alone_gives_one_metric() -> None:
    values = run_workloads.run_workload(Clockwork(), workloads.Single(512, 0), VOCAB, "a")
    assert values == pytest.approx({"prefill_512": 1000.0})


def test_batch_adds_up_its_sequences() -> None:
    values = run_workloads.run_workload(Clockwork(), workloads.Batch(8, 128, 16), VOCAB, "a")
    assert values == pytest.approx({"decode_batch_8": 800.0})


def test_batch_counts_only_while_every_sequence_decodes() -> None:
    generation = Generation(0.0, [[1, 1, 1], [1, 1, 1]], [[1.0, 2.0, 3.0], [2.5, 3.5, 4.5]])
    assert generation.time_to_first_token == 2.5
    assert generation.decode_rate == pytest.approx(2.0)  # one token in (2.5, 3.0]


def test_batch_that_never_overlaps_is_refused() -> None:
    generation = Generation(0.0, [[1], [1, 1]], [[1.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="never decoded at the same time"):
        _ = generation.decode_rate


def test_second_turn_pays_for_its_new_tokens_only() -> None:
    turn = workloads.SecondTurn(conversation=500, reply=4, message=64)
    values = run_workloads.run_workload(Clockwork(), turn, VOCAB, "a")
    assert values == pytest.approx({"second_turn": 64.0, "message_alone": 64.0})


def test_measure_warms_up_first() -> None:
    contender = Clockwork()
    values = run_workloads.measure(contender, [workloads.Single(128, 16)], VOCAB, "a")
    assert len(contender.calls) == len(workloads.WARM_UP) + 1
    assert contender.calls[-1] == (1, 128, 17)
    assert values.keys() == {"prefill_128", "decode_128"}


def test_prompts_are_equal_for_all_contenders_and_cold_for_each_seed() -> None:
    first = workloads.write_prompt(100, VOCAB, "round 1")
    assert first == workloads.write_prompt(100, VOCAB, "round 1")
    assert common_prefix(first, workloads.write_prompt(100, VOCAB, "round 2")) == 0
    assert all(workloads.FIRST_ORDINARY_TOKEN <= token < VOCAB for token in first)


def test_prompts_differ_in_a_tiny_vocabulary_too() -> None:
    first, second = (workloads.write_prompt(99, 8, seed) for seed in ("round 1", "round 2"))
    assert first != second
    assert set(first) == {4, 5, 6, 7}


def test_common_prefix_leaves_a_token_to_compute() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 2
    assert common_prefix([1, 2, 3], [1, 2, 3, 4]) == 3
    assert common_prefix([], [1]) == 0


def test_full_set_has_every_figure_the_project_reports() -> None:
    keys = {metric.key for metric in workloads.list_metrics(workloads.FULL)}
    prefill = {f"prefill_{context}" for context in (128, 512, 2048, 7000)}
    decode = {f"decode_{context}" for context in (128, 2048, 7000)}
    other = {"decode_batch_8", "second_turn", "message_alone", "peak_memory", "load"}
    assert keys == prefill | decode | other


@pytest.mark.parametrize("name", list(workloads.SETS))
def test_limits_hold_every_workload(name: str) -> None:
    limits = needed_limits(2, workloads.SETS[name])
    assert limits.cache_tokens % ROUNDING == 0
    for workload in (*workloads.WARM_UP, *workloads.SETS[name]):
        assert workload.cache_load.tokens <= limits.cache_tokens
    assert limits.sequences == (256 if name == "full_on_gpu" else 8)


@pytest.mark.parametrize("name", list(workloads.SETS))
def test_a_model_that_runs_any_workload_can_warm_up(name: str) -> None:
    shortest = min(workload.cache_load.length for workload in workloads.SETS[name])
    assert all(workload.cache_load.length <= shortest for workload in workloads.WARM_UP)
    assert workloads.choose_workloads(name, shortest)
    assert workloads.choose_workloads(name, shortest - 1) == []


def test_kvfold_contender_reports_every_token_when_it_came() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    prompts = make_prompts()[:3]
    expected = [completion.token_ids for completion in llm.generate(prompts, SamplingParams(max_tokens=9))]
    fresh, _ = make_llm(PLANS["hybrid"])
    generation = KvfoldContender(fresh).generate(prompts, 9)
    assert generation.tokens == expected
    assert [len(times) for times in generation.arrivals] == [9, 9, 9]
    assert all(times == sorted(set(times)) for times in generation.arrivals)
    assert all(times[0] > generation.started for times in generation.arrivals)


def test_kvfold_contender_reuses_the_first_turn() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    run_workloads.run_workload(KvfoldContender(llm), workloads.SecondTurn(200, 4, 16), 256, "a")
    assert llm.metrics.cache.resumed_turns == 1
    assert llm.metrics.cache.hit_tokens == 203  # all but the reply's last token, whose KV nobody needed yet


def test_kvfold_contender_gives_back_what_does_not_continue() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    contender = KvfoldContender(llm)
    for prompts in (make_prompts()[:1], make_prompts()[1:2], make_prompts()[2:4]):
        contender.generate(prompts, 3)
    check(llm)
    assert in_use(llm) == 0


def shipped_plan(name: str) -> FoldPlan:
    return plan_for(load_recipe(name).plan, AttentionShape(30, 9, 3, 64))


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("chosen", ["quick", "full"])
def test_every_shipped_plan_runs_the_workloads(name: str, chosen: str) -> None:
    """All sequences at once, in the contender's pools, over an engine that checks its pages."""
    plan, context = shipped_plan(name), 8192
    limits = needed_limits(2, workloads.SETS[chosen])
    pages = pages_in_use(plan, limits, RuntimeConfig().max_num_batched_tokens)
    config = runtime_config(plan, dict.fromkeys(pages, 4), limits, context)
    engine = SyntheticEngine(plan, {name: 2 * count for name, count in pages.items()}, VOCAB, context)
    llm = LLM(engine, ByteTokenizer(()), config)
    values = run_workloads.measure(KvfoldContender(llm), workloads.SETS[chosen], VOCAB, "round 1")
    assert values.keys() == {metric.key for workload in workloads.SETS[chosen] for metric in workload.metrics}
    assert engine.largest_batch == 8
    assert llm.metrics.cache.preemptions == 0


@given(
    windows=st.lists(st.sampled_from([None, 1, 16, 32, 100, 1024]), min_size=1, max_size=4),
    sinks=st.sampled_from([0, 4, 40]),
    loads=st.lists(st.tuples(st.integers(1, 8), st.integers(2, 600)), min_size=1, max_size=3),
    context=st.sampled_from([600, 4096]),
)
def test_pools_hold_what_is_in_use(
    windows: list[int | None], sinks: int, loads: list[tuple[int, int]], context: int
) -> None:
    plan = make_plan(*((window, sinks if window else 0) for window in windows))
    limits = Limits(2, tuple(CacheLoad(*load) for load in loads))
    slabs = {group.name: 4 for group in plan.groups}
    config = runtime_config(plan, slabs, limits, context)
    in_use = pages_in_use(plan, limits, config.max_num_batched_tokens)
    assert config.kv_cache_bytes is not None
    assert config.kv_cache_bytes >= 2 * bytes_of_slabs(plan, in_use, dict.fromkeys(slabs, 1))

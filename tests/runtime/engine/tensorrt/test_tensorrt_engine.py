"""The TensorRT engine's host side over stand-ins for driver and library; no test shows what a GPU does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import CapacityError, TargetError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.cuda.device_sampler import SamplerSizes
from kvfold.runtime.engine.cuda.memory_check import MIB
from kvfold.runtime.engine.protocol import GroupTables, StepInputs
from kvfold.runtime.engine.tensorrt.tensorrt_engine import TensorRTEngine
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status
from tests.runtime.engine.tensorrt.tensorrt_harness import Machine, make_config, make_facts
from tests.runtime.harness import PLANS, check, make_prompts
from tests.runtime.synthetic_engine import expected_tokens, make_plan

GLOBAL = make_plan((None, 0))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "engine")


def decode(past: list[int], plan: FoldPlan = GLOBAL, page: int = 0) -> StepInputs:
    """One token of each sequence; sequence i has pages of its own, `page + i * 10` and on."""
    count, size = len(past), plan.page_size
    width = max(past) // size + 1
    table = np.full((count, width), -1, np.int32)
    for row, length in enumerate(past):
        used = length // size + 1
        table[row, :used] = page + row * 10 + np.arange(used)
    slots = table[np.arange(count), np.asarray(past) // size] * size + np.asarray(past) % size
    return StepInputs(
        input_ids=np.arange(1, count + 1),
        cumulative_sequence_length=np.arange(count + 1, dtype=np.int32),
        past_seqlens=np.asarray(past, np.int32),
        logits_indices=np.arange(count),
        tables={group.name: GroupTables(table, slots.astype(np.int32)) for group in plan.groups},
    )


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("name", PLANS)
def test_every_plan_gives_the_tokens_of_its_definition(machine: Machine, name: str, library: str) -> None:
    plan = PLANS[name]
    config = make_config(make_facts(plan, library), vocab=VOCAB)
    llm = LLM(
        machine.load(plan, 128, config),
        ByteTokenizer(()),
        RuntimeConfig(max_num_batched_tokens=48, max_num_seqs=5),
    )
    prompts = make_prompts()
    completions = llm.generate(prompts, SamplingParams(max_tokens=12))
    expected = [expected_tokens(plan, prompt, 12, VOCAB) for prompt in prompts]
    assert [completion.token_ids for completion in completions] == expected
    check(llm)


def test_a_bucket_runs_directly_then_is_captured_then_replayed(machine: Machine) -> None:
    engine = machine.load(GLOBAL, config=make_config(make_facts(GLOBAL, "tensorrt")))
    replies = [engine.execute(decode([0, 3, 5])).copy() for _ in range(4)]
    assert machine.driver.count("cuStreamBeginCapture") == 1
    assert machine.driver.count("cuGraphLaunch") == 3
    assert all(np.array_equal(replies[0], reply) for reply in replies)
    engine.execute(decode([1]))
    assert machine.driver.count("cuStreamBeginCapture") == 1, "another bucket, met once"
    engine.execute(decode([0, 3, 5]))
    assert machine.driver.count("cuGraphLaunch") == 4, "the first bucket's graph outlives other buckets"


def test_tensorrt_rtx_captures_graphs_itself_and_compiles_buckets_at_once(machine: Machine) -> None:
    engine = machine.load(GLOBAL)
    for _ in range(3):
        engine.execute(decode([0, 3, 5]))
    assert machine.driver.count("cuStreamBeginCapture") == 0
    buckets, prefill = machine.trt.runtime_configs
    assert (buckets.cuda_graph_strategy, buckets.dynamic_shapes_kernel_specialization_strategy) == (
        "whole graph",
        "eager",
    )
    assert (prefill.cuda_graph_strategy, prefill.dynamic_shapes_kernel_specialization_strategy) == (
        "disabled",
        "none",
    )
    assert buckets.cache is prefill.cache is not None


def test_padding_arrives_as_sequences_that_see_and_write_nothing(machine: Machine) -> None:
    plan = make_plan((None, 0), (32, 4))
    engine = machine.load(plan)
    engine.execute(decode([17, 0, 40], plan))
    seen = machine.trt.model.steps[-1]
    assert seen[contract.CUMULATIVE_SEQUENCE_LENGTH].tolist() == [0, 1, 2, 3, 4]
    assert seen[contract.PAST_SEQLENS].tolist() == [17, 0, 40, 0]
    for group in plan.groups:
        table = seen[contract.block_table(group.name)]
        assert table.shape == (4, 16) and table[2].tolist() == [20, 21, 22] + [-1] * 13
        assert (table[3] == -1).all()
        assert seen[contract.slot_mapping(group.name)][3] == -1


def test_logits_rows_are_the_wanted_ones_in_order(machine: Machine) -> None:
    engine = machine.load(GLOBAL)
    step = decode([0, 0, 0])
    every = engine.execute(step).copy()
    some = StepInputs(
        step.input_ids, step.cumulative_sequence_length, step.past_seqlens, np.array([2, 0]), step.tables
    )
    rows = engine.execute(some)
    assert rows.shape == (2, 97) and rows.dtype == np.float32
    assert np.array_equal(rows, every[[2, 0]])


def test_caches_keep_their_address_and_start_empty(machine: Machine) -> None:
    engine = machine.load(GLOBAL, pages=32)
    for past in ([0], [0, 3, 5], [1, 2]):
        engine.execute(decode(past))
    bound = [
        {name: context.addresses[name] for name in context.addresses if "cache" in name}
        for context in machine.trt.contexts
    ]
    assert len(bound) == 4 and all(addresses == bound[0] for addresses in bound)
    assert bound[0]["key_cache.0"] == bound[0]["key_cache_out.0"] != bound[0]["value_cache.0"]
    content = np.full((10, 256), 7, np.uint8)
    engine.pages.copy_out("global", np.arange(10), content)
    assert content[0].any() and not content[1:].any(), "pages 1 to 9 belong to nobody"


def test_a_step_is_one_copy_up_one_down_and_one_wait(machine: Machine) -> None:
    engine = machine.load(GLOBAL)
    machine.driver.calls.clear()
    engine.execute(decode([0, 3]))
    called = [name for name in machine.driver.calls if name != "cuCtxSetCurrent"]
    up, down = ["cuMemcpyHtoDAsync", "cuEventRecord"], ["cuMemcpyDtoHAsync", "cuStreamSynchronize"]
    assert called == ["cuEventSynchronize", *up, *down], "the first only waits for what was pinned before"


def test_contexts_share_one_workspace(machine: Machine) -> None:
    engine = machine.load(GLOBAL)
    engine.execute(decode([0]))
    engine.execute(decode([0, 0]))
    assert len({context.memory for context in machine.trt.contexts}) == 1


def test_the_plugin_opens_the_engines_kernels(machine: Machine) -> None:
    machine.load(GLOBAL)
    ((trt, kernels),) = machine.loaded
    assert (trt, kernels.name) == (machine.trt, "kernels")
    assert (kernels / "kernels.bin").is_file()


def test_logits_keep_the_gpu_until_they_are_gone(machine: Machine) -> None:
    logits = machine.load(GLOBAL).execute(decode([0, 3]))
    expected = logits.copy()
    assert machine.driver.pinned and np.array_equal(logits, expected)
    del logits
    assert not machine.driver.pinned and machine.driver.count("cuDevicePrimaryCtxRelease") == 1


def test_close_gives_everything_back_once(machine: Machine) -> None:
    engine = machine.load(GLOBAL, config=make_config(make_facts(GLOBAL, "tensorrt")))
    for _ in range(2):
        engine.execute(decode([0]))
    assert machine.driver.graphs == 1 and len(machine.trt.contexts) == 2
    machine.driver.calls.clear()
    engine.close()
    engine.close()
    assert machine.driver.calls[:2] == ["a context ends"] * 2, "before the memory that they use"
    weights = [len(memory) for memory in machine.driver.device.values()]
    assert weights == [1024], "the stand-in library keeps what it took itself"
    assert machine.driver.graphs == 0 and not machine.driver.pinned
    assert not machine.driver.reserved and not machine.driver.mapped and not machine.driver.handles


def test_a_plan_that_the_library_refuses_gives_the_gpu_back(machine: Machine) -> None:
    with pytest.raises(TargetError, match=r"refused .*model\.plan"):
        machine.load(GLOBAL, content=b"damaged plan")
    assert not machine.driver.device and machine.driver.count("cuDevicePrimaryCtxRelease") == 1


def test_a_pool_has_no_more_pages_than_the_plan_takes(machine: Machine) -> None:
    slab = 16384  # 2 MiB of pages of 128 bytes
    config = make_config(make_facts(GLOBAL, max_pages={"global": 2 * slab + 5}))
    assert machine.load(GLOBAL, pages=4 * slab, config=config).info.num_pages == {"global": 2 * slab}


def test_a_plan_that_takes_no_slab_is_refused(machine: Machine) -> None:
    config = make_config(make_facts(GLOBAL, max_pages={"global": 100}))
    with pytest.raises(CapacityError, match=r"16384 pages at least, .* this plan takes 100; build"):
        machine.load(GLOBAL, config=config)
    assert machine.driver.count("cuMemAlloc") == 0


def test_a_shape_that_the_library_refuses_is_named_with_its_range(machine: Machine) -> None:
    config = make_config(make_facts(GLOBAL, max_pages={"global": 1 << 22}))
    with pytest.raises(TargetError, match=r"shape \(2097152, 16, 1, 2\) of key_cache.0; profile 1 takes"):
        machine.load(GLOBAL, pages=1 << 21, config=config)
    assert not machine.driver.reserved


def test_too_little_memory_is_refused_before_it_is_taken(machine: Machine) -> None:
    machine.driver.total = 300 << 20
    with pytest.raises(CapacityError, match=r"KV pools 64 MiB, .* sampling 1 MiB; .* Lower kv_cache_bytes"):
        machine.load(GLOBAL, pages=1 << 18)
    assert machine.driver.count("cuMemAlloc") == 0


def test_sampling_is_counted_for_the_sequences_of_a_step(machine: Machine) -> None:
    """However many rows of a prompt a step may have: of those none is sampled but the last."""
    facts = make_facts(GLOBAL)
    many = make_facts(GLOBAL, prefill=facts.prefill.model_copy(update={"max_logits": 64}))
    vocab, taken = 40_000, 6
    machine.driver.total = 300 << 20
    sampling = -(-SamplerSizes.of(taken, vocab).together // MIB)
    assert sampling < -(-SamplerSizes.of(64, vocab).together // MIB)
    with pytest.raises(CapacityError, match=f"logits 10 MiB, sampling {sampling} MiB;"):
        machine.load(GLOBAL, pages=1 << 18, config=make_config(many, vocab))


def test_a_workspace_that_does_not_fit_is_refused_beside_the_weights(machine: Machine) -> None:
    machine.driver.total = 300 << 20
    with pytest.raises(CapacityError, match=r"weights 2 MiB, KV pools 4 MiB, .* workspace 50 MiB"):
        machine.load(GLOBAL, content=b"plan" * (1 << 18) + b"!", workspace_bytes=50 << 20)
    assert machine.driver.count("cuMemAlloc") == 1, "the weights alone"


def test_a_step_may_come_from_another_thread(machine: Machine) -> None:
    engine = machine.load(GLOBAL)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(engine.execute, decode([0, 3])).result().shape == (2, 97)


def test_a_wrong_architecture_is_refused_before_memory_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, tmp_path / "engine", StandInDriver(architecture=120))
    with pytest.raises(TargetError, match="SM 120, the plan was built for SM 80, 89"):
        machine.load(GLOBAL)
    assert machine.driver.count("cuMemAlloc") == 0
    assert machine.driver.count("cuDevicePrimaryCtxRelease") == 1


def test_an_error_on_the_gpu_names_itself(machine: Machine) -> None:
    engine: TensorRTEngine = machine.load(GLOBAL)
    machine.driver.fails["cuStreamSynchronize"] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(TargetError, match="cuStreamSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.execute(decode([0]))


def test_a_step_outside_of_the_plan_is_refused_and_the_engine_goes_on(machine: Machine) -> None:
    engine = machine.load(GLOBAL)
    with pytest.raises(TargetError, match="7 sequences, this plan takes 6; lower max_num_seqs"):
        engine.execute(decode([0] * 7))
    assert engine.execute(decode([0] * 6)).shape == (6, 97)

"""A TensorRT plan of the tiny recipe, built for this GPU and run through the engine that users get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvfold import LLM, Completion, RuntimeConfig, SamplingParams
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.memory_check import MARGIN, MIB, check_memory
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from kvfold.runtime.engine.protocol import GroupTables, StepInputs
from kvfold.runtime.engine.tensorrt import tensorrt_engine as engine_module
from kvfold.runtime.engine.tensorrt.tensorrt_engine import TensorRTEngine
from tests.gpu.conftest import RecordProperty
from tests.gpu.distances import MAX_KL_TO_CPU, MAX_KL_TO_FOLDED, check_logits
from tests.gpu.engines import read_in_new_process, tensorrt_engine
from tests.gpu.read_texts import NUM_PAGES, read_texts
from tests.gpu.tiny_bundle import TinyBundle
from tests.paging import Pager, budget_of, commit_first

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=1)


@pytest.fixture
def directory(tiny: TinyBundle, target: str, architectures: tuple[int, ...]) -> Path:
    """The target's engine."""
    return tiny.build(target, architectures)


def test_logits_are_the_cpu_engines_and_the_folded_models(
    tiny: TinyBundle, directory: Path, record_property: RecordProperty
) -> None:
    """Prefill and decode steps give the cpu engine's and the folded model's logits, within a KL bound."""
    with tensorrt_engine(directory, tiny.plan) as engine:
        logits = read_texts(engine, tiny.plan, tiny.texts)
    files = EngineFiles.read(tiny.build("cpu"), tiny.plan)
    on_cpu = read_texts(OnnxRuntimeEngine.load(files, budget_of(files, NUM_PAGES)), tiny.plan, tiny.texts)
    check_logits(record_property, "cpu || gpu", on_cpu, logits, MAX_KL_TO_CPU)
    check_logits(record_property, "folded || gpu", tiny.folded_logits, logits, MAX_KL_TO_FOLDED)


def test_graphs_replay_the_bits_of_a_direct_run(tiny: TinyBundle, directory: Path) -> None:
    """Three runs give the same bits: a bucket's first step runs directly, all later ones as a CUDA graph."""
    with tensorrt_engine(directory, tiny.plan) as engine:
        first, *others = (read_texts(engine, tiny.plan, tiny.texts) for _ in range(3))
    for logits in others:
        np.testing.assert_array_equal(logits, first)


def test_padding_changes_no_bit(tiny: TinyBundle, directory: Path, record_property: RecordProperty) -> None:
    """Three sequences, padded to a bucket of four, give the bits that they give beside a fourth one."""
    pager = Pager(tiny.plan, NUM_PAGES)
    prompts = [pager.step({index: text[:40].tolist()}) for index, text in enumerate(tiny.texts)]
    four = pager.step({index: [int(text[40])] for index, text in enumerate(tiny.texts)})
    with tensorrt_engine(directory, tiny.plan) as engine:
        commit_first(engine, NUM_PAGES)
        for prompt in prompts:
            engine.execute(replace(prompt, logits_indices=prompt.logits_indices[-1:]))
        exact = engine.execute(four).copy()
        padded = engine.execute(first_sequences(four, 3)).copy()
        alone = engine.execute(first_sequences(four, 1)).copy()
    np.testing.assert_array_equal(padded, exact[:3])
    # Another bucket, so perhaps another choice of GEMM: only recorded.
    record_property("largest difference to a batch of one", f"{np.abs(alone - exact[:1]).max():.1e}")


def first_sequences(step: StepInputs, count: int) -> StepInputs:
    """The first sequences of a decode step."""
    tables = {
        name: GroupTables(group.block_table[:count], group.slot_mapping[:count])
        for name, group in step.tables.items()
    }
    return StepInputs(
        input_ids=step.input_ids[:count],
        cumulative_sequence_length=step.cumulative_sequence_length[: count + 1],
        past_seqlens=step.past_seqlens[:count],
        logits_indices=step.logits_indices[:count],
        tables=tables,
    )


def test_cold_warm_and_chunked_replies(
    tiny: TinyBundle, directory: Path, target: str, record_property: RecordProperty
) -> None:
    """The same steps give the same reply, to the last bit of each logprob; how far others agree is recorded.

    TensorRT may choose another GEMM for another shape. So a cold run equals a cold run and a warm one a warm
    one, while a warm run (its prompt's last tokens only) and smaller chunks have steps of other shapes.
    """
    prompt = tiny.texts[0][:90].tolist()
    cold, warm, warm_again = generate(tiny.root, target, prompt, runs=3)
    (cold_again,) = generate(tiny.root, target, prompt)
    (chunked,) = generate(tiny.root, target, prompt, chunk=16)
    assert (cold.usage.reused_tokens, cold_again.usage.reused_tokens) == (0, 0)
    assert warm.usage.reused_tokens == warm_again.usage.reused_tokens > 0
    assert (cold_again.token_ids, cold_again.logprobs) == (cold.token_ids, cold.logprobs)
    assert (warm_again.token_ids, warm_again.logprobs) == (warm.token_ids, warm.logprobs)
    for name, reply in (("warm", warm), ("chunked", chunked)):
        same = np.equal(reply.token_ids, cold.token_ids)
        agreeing = len(same) if same.all() else int(same.argmin())
        record_property(f"tokens that agree with cold, {name}", f"{agreeing} of {len(same)}")


def generate(root: Path, target: str, prompt: list[int], runs: int = 1, chunk: int = 64) -> list[Completion]:
    """Replies one after the other of one LLM."""
    llm = LLM.load(root, RuntimeConfig(max_num_batched_tokens=chunk, max_num_seqs=4), target)
    engine = llm.generator.loop.core.engine
    assert isinstance(engine, TensorRTEngine)
    try:
        return [llm.generate(prompt, GREEDY)[0] for _ in range(runs)]
    finally:
        engine.close()


def test_memory_is_what_was_counted(
    tiny: TinyBundle,
    directory: Path,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    record_property: RecordProperty,
) -> None:
    """A loaded engine, its graphs included, takes what was counted before and less than the margin more."""
    counted: list[int] = []

    def remember(parts: dict[str, int], free: int, advice: str) -> None:
        counted.append(sum(parts.values()))
        check_memory(parts, free, advice)

    monkeypatch.setattr(engine_module, "check_memory", remember)
    before = device.free_bytes()
    with tensorrt_engine(directory, tiny.plan) as engine:
        loaded = before - device.free_bytes()
        read_texts(engine, tiny.plan, tiny.texts)
        read_texts(engine, tiny.plan, tiny.texts)
        device.activate()
        ran = before - device.free_bytes()
    assert len(counted) == 2
    record_property("counted", f"{counted[-1] / MIB:.1f} MiB")
    record_property("more than counted when loaded", f"{(loaded - counted[-1]) / MIB:.1f} MiB")
    record_property("more than counted after running", f"{(ran - counted[-1]) / MIB:.1f} MiB")
    assert ran <= counted[-1] + MARGIN


def test_closing_gives_the_memory_back(
    tiny: TinyBundle, directory: Path, device: Device, record_property: RecordProperty
) -> None:
    """An engine that is loaded, run and closed again and again loses no memory after the first time."""
    free = []
    for _ in range(4):
        with tensorrt_engine(directory, tiny.plan) as engine:
            read_texts(engine, tiny.plan, tiny.texts)
        device.activate()
        free.append(device.free_bytes())
    lost = (free[0] - free[-1]) / MIB
    record_property("lost by three more engines", f"{lost:.1f} MiB")
    assert lost <= 16


def test_a_fresh_process_runs_the_plan(tiny: TinyBundle, directory: Path, tmp_path: Path) -> None:
    """Without torch, Triton, ONNX and any setting of LD_LIBRARY_PATH the plan gives the same bits."""
    with tensorrt_engine(directory, tiny.plan) as engine:
        logits = read_texts(engine, tiny.plan, tiny.texts)
    np.testing.assert_array_equal(read_in_new_process(tiny, directory, tmp_path), logits)

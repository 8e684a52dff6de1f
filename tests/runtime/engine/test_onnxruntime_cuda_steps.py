"""Steps of the cuda target over a stand-in driver, whose stream has ONNX Runtime's CPU provider compute."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from weakref import finalize

import pytest

from kvfold.plugins.contract.errors import BundleError, CapacityError, EngineError, TargetError
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.runtime.engine import onnxruntime_cuda
from kvfold.runtime.engine.cuda import step_runner
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.memory_check import MARGIN
from kvfold.runtime.engine.cuda.step_shape import StepShape
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER, StepLimits
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_cuda import (
    RUNS_BEFORE_CAPTURE,
    largest_prompts,
    load_cuda,
)
from kvfold.runtime.engine.onnxruntime_engine import PROVIDERS, Provider
from kvfold.runtime.sampling.params import SamplingParams
from tests.paging import Pager, commit_first
from tests.runtime.byte_tokenizer import VOCAB
from tests.runtime.engine.cuda_engine_stand_in import CONFIG, PLAN, SEQUENCES, TOKENS, Gpu, StreamedSession
from tests.runtime.engine.steady_step import STEADY, calls_of_a_step
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status
from tests.runtime.harness import check


@pytest.fixture
def gpu(tmp_path: Path) -> Gpu:
    return Gpu(tmp_path)


def following(prompt: list[int], count: int) -> list[int]:
    return [prompt[-1] + 1 + at for at in range(count)]


@pytest.mark.parametrize("samples", [True, False])
def test_tokens_are_the_model_s_whoever_samples(tmp_path: Path, samples: bool) -> None:
    gpu = Gpu(tmp_path, samples)
    llm = gpu.llm()
    prompts = [[1, 2, 3], [70] * 60, [40], [9, 9], [100] * 17]
    replies = llm.generate(prompts, SamplingParams(max_tokens=9))
    assert [reply.token_ids for reply in replies] == [following(prompt, 9) for prompt in prompts]
    check(llm)
    assert gpu.driver.count("cuGraphLaunch") > 0 and (gpu.driver.count("cuLaunchKernel") > 0) is samples


def test_every_parameter_gives_the_host_sampler_s_tokens(tmp_path: Path) -> None:
    """Seeds, penalties, biases, bans and log probabilities go up; tokens come down."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    params = [
        SamplingParams(temperature=1.5, seed=1, max_tokens=12, logprobs=3),
        SamplingParams(temperature=2.0, top_k=5, seed=2, max_tokens=12),
        SamplingParams(temperature=3.0, top_p=0.8, min_p=0.01, seed=3, max_tokens=12, logprobs=0),
        SamplingParams(repetition_penalty=1.5, frequency_penalty=1.0, presence_penalty=0.5, max_tokens=12),
        SamplingParams(logit_bias={7: 99.0, 8: -5.0}, stop_token_ids=(50,), min_tokens=4, max_tokens=12),
        SamplingParams(logprobs=40, max_tokens=3),  # more than the GPU tells of
    ]
    replies = []
    for folder, samples in (("with", True), ("without", False)):
        llm = Gpu(tmp_path / folder, samples).llm()
        replies.append([llm.generate([[5, 49]], each)[0] for each in params])
    for ours, hosts in zip(*replies, strict=True):
        assert ours.token_ids == hosts.token_ids
        assert (ours.logprobs is None) is (hosts.logprobs is None)
        for told, expected in zip(ours.logprobs or (), hosts.logprobs or (), strict=True):
            assert told.logprob == pytest.approx(expected.logprob, abs=1e-6)
            assert [token for token, _ in told.top] == [token for token, _ in expected.top]


def test_a_steady_step_is_one_copy_up_a_graph_a_kernel_and_tokens_down(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calls_of_a_step(gpu.llm(), monkeypatch) == STEADY


def test_a_step_without_a_graph_or_a_sampler_is_told_from_a_steady_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the same check on a GPU can fail."""
    on_the_host = calls_of_a_step(Gpu(tmp_path, samples=False).llm(), monkeypatch)
    assert "cuGraphLaunch" in on_the_host and "cuLaunchKernel" not in on_the_host


def test_a_prompt_s_rows_come_down_whole_however_many_are_wanted(gpu: Gpu) -> None:
    """More than the pinned memory holds at once; then a decode step again, in its own buffer."""
    commit_first(gpu.engine, 16)
    pager = Pager(PLAN, 16)
    tokens = list(range(30))
    rows = gpu.engine.execute(pager.step({0: tokens}))
    assert rows.shape == (30, VOCAB) and rows.argmax(axis=1).tolist() == [token + 1 for token in tokens]
    assert gpu.engine.execute(pager.step({0: [77]})).argmax(axis=1).tolist() == [78]
    under_way = gpu.engine.begin(pager.step({1: tokens}))
    assert under_way.logits(slice(3, 5)).argmax(axis=1).tolist() == [4, 5]


def test_a_prompt_s_log_probabilities_take_no_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a step may take was taken when the engine was loaded, and its last chunk is like its first."""
    params = SamplingParams(max_tokens=3, logprobs=1, prompt_logprobs=2)
    prompts, told = [[*range(1, 60)], [7] * 31], []
    for rows in (TOKENS, SEQUENCES + 1):
        (tmp_path / str(rows)).mkdir()
        monkeypatch.setattr(onnxruntime_cuda, "LOGITS_BYTES", 4 * VOCAB * rows)
        gpu = Gpu(tmp_path / str(rows))
        assert gpu.engine.info.max_logits == rows
        llm, taken = gpu.llm(), gpu.driver.count("cuMemAlloc")
        told.append([(reply.prompt_logprobs, reply.token_ids) for reply in llm.generate(prompts, params)])
        assert gpu.driver.count("cuMemAlloc") == taken
    assert told[0] == told[1] and len(told[0][0][0] or ()) == 59


def test_more_rows_than_it_has_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "LOGITS_BYTES", 0)
    gpu = Gpu(tmp_path)
    commit_first(gpu.engine, 16)
    with pytest.raises(TargetError, match="5 of rows of logits, the engine was loaded for 4"):
        gpu.engine.begin(Pager(PLAN, 16).step({0: [1] * 5}))


def test_the_next_step_waits_for_one_that_nobody_asked_about(gpu: Gpu) -> None:
    commit_first(gpu.engine, 16)
    pager = Pager(PLAN, 16)
    gpu.engine.begin(pager.step({0: [1, 2, 3]}))
    assert gpu.driver.stream, "begun, not done"
    assert gpu.engine.execute(pager.step({0: [9]})).argmax() == 10


def test_a_step_that_cannot_be_captured_runs_directly_and_says_so(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: when it is found, and when it is given up."""
    monkeypatch.setattr(step_runner, "RUNS_BEFORE_RETRY", 5)
    gpu.session.refuses_capture = True
    with pytest.warns(UserWarning, match="cannot become a CUDA graph") as warned:
        replies = gpu.llm().generate([[3]], SamplingParams(max_tokens=60))
    assert replies[0].token_ids == following([3], 60)
    said = [str(each.message) for each in warned]
    assert said[0].endswith("5 steps later it is tried again") and "tried 4 times" in said[1]
    assert len(said) == 2 and gpu.driver.count("cuStreamBeginCapture") == step_runner.TRIES
    assert gpu.driver.count("cuGraphLaunch") == 0


def test_a_step_that_could_not_be_captured_is_tried_again(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kept it from that, such as a lack of memory, may have passed."""
    monkeypatch.setattr(step_runner, "RUNS_BEFORE_RETRY", 5)
    gpu.session.refuses_capture = True
    stream = gpu.llm().stream([3], SamplingParams(max_tokens=40))
    with pytest.warns(UserWarning, match="5 steps later it is tried again"):
        for _ in range(RUNS_BEFORE_CAPTURE + 2):
            next(stream)
    gpu.session.refuses_capture = False
    assert gpu.driver.count("cuStreamBeginCapture") == 1 and len(list(stream)) > 20
    assert gpu.driver.count("cuStreamBeginCapture") == 2 and gpu.driver.count("cuGraphLaunch") > 20


def test_prompts_and_replies_of_several_sizes_overlap_in_two_pinned_buffers(gpu: Gpu) -> None:
    """Steps of other shapes and rows follow each other on the stream; replies end beside ones that go on."""
    llm = gpu.llm()
    prompts = [[1, 2, 3], [70] * 60, [40], [9, 9], [100] * 17, [120]]
    params = [
        SamplingParams(max_tokens=9),
        SamplingParams(max_tokens=20, stop_token_ids=(75,)),
        SamplingParams(max_tokens=14, prompt_logprobs=0),
        SamplingParams(max_tokens=1),
        SamplingParams(max_tokens=25, temperature=0.01, seed=3),
        SamplingParams(max_tokens=30, repetition_penalty=1.1, stop_token_ids=(133,)),
    ]
    replies = llm.generate(prompts, params)
    lengths = [9, 5, 14, 1, 25, 13]
    assert [reply.token_ids for reply in replies] == [
        following(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)
    ]
    check(llm)
    gpu.driver.calls.clear()
    assert llm.generate([[3]], SamplingParams(max_tokens=2))[0].token_ids == [4, 5]
    assert gpu.driver.count("cuStreamSynchronize") == 0, "only what is wanted is waited for"


def test_a_failure_on_the_gpu_ends_the_engine_with_its_words(gpu: Gpu) -> None:
    llm = gpu.llm()
    stream = llm.stream([5, 6, 7], SamplingParams(max_tokens=40))
    next(stream)
    gpu.driver.fails["cuEventSynchronize"] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match="ILLEGAL_ADDRESS"):
        list(stream)


def test_onnx_runtime_out_of_gpu_memory_ends_the_engine_with_advice(gpu: Gpu) -> None:
    llm = gpu.llm()
    stream = llm.stream([5, 6, 7], SamplingParams(max_tokens=40))
    next(stream)
    gpu.session.fails = "Failed to allocate memory for requested buffer of size 8"
    with pytest.raises(EngineError, match=r"requested buffer of size 8; .*or lower kv_cache_bytes") as caught:
        list(stream)
    assert isinstance(caught.value.__cause__, CapacityError)


def test_steps_beyond_what_it_was_loaded_for_are_refused(gpu: Gpu) -> None:
    commit_first(gpu.engine, 16)
    with pytest.raises(TargetError, match="5 of max_num_seqs, the engine was loaded for 4"):
        gpu.engine.begin(Pager(PLAN, 16).step({at: [1] for at in range(5)}))


def test_too_little_memory_is_refused_before_pools_are_taken(tmp_path: Path) -> None:
    driver = StandInDriver(total=MARGIN + (4 << 20))
    with pytest.raises(CapacityError, match=r"KV pools 4 MiB, step inputs 1 MiB, .* sampling 1 MiB;"):
        Gpu(tmp_path, driver=driver)
    assert not driver.used and not driver.reserved


class WarmedDriver(StandInDriver):
    """The first step takes memory of its own."""

    taken = 0

    def _mem_get_info(self) -> tuple[int, int]:
        free, total = super()._mem_get_info()
        return free - (self.taken if self.count("cuMemcpyHtoDAsync") else 0), total


def test_what_onnx_runtime_takes_in_its_first_step_is_not_promised_to_pages(tmp_path: Path) -> None:
    for taken, fits in ((32, True), (62, False)):
        folder = tmp_path / str(taken)
        folder.mkdir()
        driver = WarmedDriver(total=MARGIN + (64 << 20))
        driver.taken = taken << 20
        refused = pytest.raises(
            CapacityError, match=r"KV pools 4 MiB, logits that sampling changes 1 MiB; .* ONNX Runtime's own"
        )
        with nullcontext() if fits else refused:
            Gpu(folder, driver=driver)


def test_a_session_that_refuses_a_step_is_a_typed_error(gpu: Gpu) -> None:
    commit_first(gpu.engine, 16)
    gpu.session.refuses_capture = True
    gpu.driver.capturing = []
    with pytest.raises(BundleError, match="cannot run a step"):
        gpu.engine.begin(Pager(PLAN, 16).step({0: [1, 2]}))


def test_a_load_that_fails_gives_up_the_session_before_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the error's traceback goes through all that held it; and a lost GPU refuses to free anything."""
    driver, gone = StandInDriver(), []
    (tmp_path / KERNELS_FOLDER).mkdir()
    KernelLibrary(triton="0", kernels=()).save(tmp_path / KERNELS_FOLDER)

    def open_session(*_: object, stream: int) -> StreamedSession:
        session = StreamedSession(driver)
        session.fails = "CUDA failure 700: an illegal memory access was encountered ; GPU=0"
        finalize(session, lambda: gone.append(driver.count("cuStreamDestroy")))
        driver.fails["cuMemFree"] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
        return session

    monkeypatch.setattr(Device, "open", lambda: Device(driver))
    monkeypatch.setattr(onnxruntime_cuda, "open_session", open_session)
    for check_name in ("check_provider", "check_graph"):
        monkeypatch.setattr(onnxruntime_cuda, check_name, lambda *_: None)
    monkeypatch.setitem(PROVIDERS, "cuda", Provider("StandIn", "cpu"))
    with pytest.raises(TargetError, match=r"700: .*the GPU is lost to this process"):
        load_cuda(EngineFiles(tmp_path, CONFIG, PLAN), 4 << 20, TOKENS, SEQUENCES)
    assert gone == [0] and driver.count("cuStreamDestroy") == 1
    assert not driver.pinned and driver.count("cuDevicePrimaryCtxRelease") == 1


def test_close_gives_everything_back(gpu: Gpu) -> None:
    gpu.llm().generate([[3]], SamplingParams(max_tokens=12))
    gpu.engine.close()
    gpu.engine.close()
    assert not gpu.driver.device and not gpu.driver.pinned and gpu.driver.graphs == 0
    assert not gpu.driver.reserved and not gpu.driver.mapped and not gpu.driver.events


def test_who_samples_a_row_does_not_depend_on_its_neighbours(gpu: Gpu) -> None:
    """One asks for more likeliest tokens than the GPU tells of: the others are sampled there all the same."""
    llm = gpu.llm()
    other = SamplingParams(temperature=2.0, seed=4, max_tokens=6)
    alone = llm.generate([[5, 49]], other)[0].token_ids
    launched = gpu.driver.count("cuLaunchKernel")
    many = SamplingParams(logprobs=40, max_tokens=6)
    together = llm.generate([[70], [5, 49], [9]], [many, other, many])
    assert gpu.driver.count("cuLaunchKernel") > launched
    assert together[1].token_ids == alone and together[0].token_ids == following([70], 6)
    assert all(len(told.top) == 40 for told in together[2].logprobs or ()) and together[2].logprobs


def test_a_step_as_large_as_any_comes_before_the_first_graph(gpu: Gpu) -> None:
    """ONNX Runtime takes memory anew where a step is larger than all before; graphs would miss that."""
    assert gpu.driver.count("cuMemcpyHtoDAsync") == 1 and gpu.driver.count("cuGraphLaunch") == 0
    limits = StepLimits(max_tokens=1300, max_sequences=8, max_table_width={"global": 32}, max_logits=8)
    step = largest_prompts(limits, gpu.engine.info)
    assert list(step.cumulative_sequence_length) == [0, 512, 1024, 1300], "no sequence is over the context"
    assert StepShape.of(step, PLAN) == StepShape(1300, 3, 8, (32,))
    assert all((tables.slot_mapping == -1).all() for tables in step.tables.values()), "it writes nothing"
    assert all((tables.block_table == -1).all() for tables in step.tables.values()), "and reads nothing"

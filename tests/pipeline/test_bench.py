"""kvfold bench: arithmetic of the workloads, the worker protocol, absent and failing peers, the tables."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner
from rich.console import Console

import pipeline
from pipeline.bench import jobs, measure, process, worker, workloads
from pipeline.bench.bench import ROUNDING, needed_limits, run_bench
from pipeline.bench.describe_plan import describe_plan
from pipeline.bench.machine import Machine
from pipeline.bench.prepared import PreparedModels
from pipeline.bench.process import WorkerError, run_job
from pipeline.bench.results import BenchResult, SubjectResult
from pipeline.bench.settings import BenchSettings
from pipeline.bench.subject import Generation, Limits
from pipeline.bench.subjects import KVFOLD, PEERS, subject_module
from pipeline.bench.subjects.kvfold import KvfoldSubject
from pipeline.bench.table import draw_table, format_value, write_markdown
from pipeline.bench.tokens import common_prefix
from pipeline.commands.bench import command
from plugins.errors import TargetError
from plugins.plan_presets import AttentionShape, Preset, build_plan
from runtime.sampling import SamplingParams
from tests.runtime.harness import PLANS, check, in_use, make_llm, make_prompts

VOCAB = 5000
PYTHON = Path(sys.executable)
LIMITS = Limits(threads=2, cache_tokens=1024, sequences=8)


class Clockwork:
    """A subject with exact times: 1 ms a prompt token it has not seen, 10 ms a decoded token."""

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
    values = measure.run_workload(Clockwork(), workloads.Completion(128, 16), VOCAB, "a")
    assert values == pytest.approx({"prefill_128": 1000.0, "decode_128": 100.0})


def test_prefill_alone_gives_one_metric() -> None:
    values = measure.run_workload(Clockwork(), workloads.Completion(512, 0), VOCAB, "a")
    assert values == pytest.approx({"prefill_512": 1000.0})


def test_batch_adds_up_its_sequences() -> None:
    values = measure.run_workload(Clockwork(), workloads.Batch(8, 128, 16), VOCAB, "a")
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
    values = measure.run_workload(Clockwork(), turn, VOCAB, "a")
    assert values == pytest.approx({"second_turn": 64.0, "message_alone": 64.0})


def test_measure_warms_up_first() -> None:
    subject = Clockwork()
    values = measure.measure(subject, [workloads.Completion(128, 16)], VOCAB, "a")
    assert len(subject.calls) == len(measure.WARM_UP) + 1
    assert subject.calls[-1] == (1, 128, 17)
    assert values.keys() == {"prefill_128", "decode_128"}


def test_prompts_are_equal_for_all_subjects_and_cold_for_each_seed() -> None:
    first = workloads.write_prompt(100, VOCAB, "round 1")
    assert first == workloads.write_prompt(100, VOCAB, "round 1")
    assert common_prefix(first, workloads.write_prompt(100, VOCAB, "round 2")) == 0
    assert all(workloads.FIRST_ORDINARY_TOKEN <= token < VOCAB for token in first)
    assert set(workloads.write_prompt(9, 8, "tiny vocabulary")) == {7}


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
    limits = needed_limits(BenchSettings(workloads=name))
    assert limits.cache_tokens % ROUNDING == 0
    assert all(workload.cache_tokens <= limits.cache_tokens for workload in workloads.SETS[name])
    assert limits.sequences == 8


@pytest.mark.parametrize(
    "job",
    [
        jobs.Probe("llama_cpp"),
        jobs.Prepare("llama_cpp", "source", "target"),
        jobs.Measure("llama_cpp", "model", "quick", VOCAB, LIMITS, "round 1"),
    ],
)
def test_jobs_survive_the_trip(job: jobs.Job) -> None:
    assert jobs.read_job(jobs.write_job(job)) == job


def test_answers_survive_the_trip(tmp_path: Path) -> None:
    answer = jobs.Answer("1.0", {"load": 0.5})
    jobs.write_answer(answer, tmp_path / "answer.json")
    assert jobs.read_answer(tmp_path / "answer.json") == answer


@pytest.mark.parametrize("name", [KVFOLD, *PEERS])
def test_subjects_are_alike(name: str) -> None:
    module = subject_module(name)
    assert module.TITLE
    assert module.WEIGHTS
    assert module.PACKAGE in module.INSTALL
    assert module.INSTALL.startswith("pip install ")
    assert callable(module.prepare)
    assert callable(module.load)


def test_subject_modules_import_no_engine() -> None:
    names = ", ".join(repr(name) for name in (KVFOLD, *PEERS))
    engines = (
        "{'torch', 'numpy', 'transformers', 'llama_cpp', 'onnxruntime_genai', 'openvino', 'onnxruntime'}"
    )
    code = (
        "import sys; from pipeline.bench import worker; from pipeline.bench.subjects import subject_module; "
        f"[subject_module(name) for name in ({names})]; print({engines} & set(sys.modules))"
    )
    run = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True, cwd=process.ROOT)
    assert run.stdout.strip() == "set()"


def test_kvfold_subject_reports_every_token_when_it_came() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    prompts = make_prompts()[:3]
    expected = [completion.token_ids for completion in llm.generate(prompts, SamplingParams(max_tokens=9))]
    fresh, _ = make_llm(PLANS["hybrid"])
    generation = KvfoldSubject(fresh).generate(prompts, 9)
    assert generation.tokens == expected
    assert [len(times) for times in generation.arrivals] == [9, 9, 9]
    assert all(times == sorted(set(times)) for times in generation.arrivals)
    assert all(times[0] > generation.started for times in generation.arrivals)


def test_kvfold_subject_reuses_the_first_turn() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    measure.run_workload(KvfoldSubject(llm), workloads.SecondTurn(200, 4, 16), 256, "a")
    assert llm.metrics.cache.resumed_turns == 1
    assert llm.metrics.cache.hit_tokens == 203  # all but the reply's last token, whose KV nobody needed yet


def test_kvfold_subject_gives_back_what_does_not_continue() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    subject = KvfoldSubject(llm)
    for prompts in (make_prompts()[:1], make_prompts()[1:2], make_prompts()[2:4]):
        subject.generate(prompts, 3)
    check(llm)
    assert in_use(llm) == 0


FAKE = """
import time
from pipeline.bench.subject import Generation

TITLE, WEIGHTS, PACKAGE, INSTALL = "Fake", "int8", "pip", "pip install pip"

def prepare(source, target):
    (target / "model").write_text((source / "config.json").read_text())

class Subject:
    def generate(self, prompts, new_tokens):
        started = time.perf_counter()
        times = [started + 0.5 + 0.01 * step for step in range(new_tokens)]
        return Generation(started, [[7] * new_tokens for _ in prompts], [times] * len(prompts))

def load(model, limits):
    if (model / "broken").exists():
        print("last words")
        raise RuntimeError("broken model")
    return Subject()
"""


@pytest.fixture
def fake_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers whose kvfold and llama_cpp need no engine, and whose openvino_genai is not installed."""
    package = tmp_path / "root" / "pipeline"
    shutil.copytree(Path(pipeline.__file__).parent / "bench", package / "bench")
    (package / "__init__.py").touch()
    for name in (KVFOLD, "llama_cpp"):
        (package / "bench" / "subjects" / f"{name}.py").write_text(FAKE)
    absent = FAKE.replace('"pip",', '"kvfold-bench-absent",')
    (package / "bench" / "subjects" / "openvino_genai.py").write_text(absent)
    monkeypatch.setattr(process, "ROOT", tmp_path / "root")


def fake_job(model: Path) -> jobs.Measure:
    return jobs.Measure("llama_cpp", str(model), "quick", VOCAB, LIMITS, "round 1")


@pytest.mark.usefixtures("fake_subjects")
def test_worker_measures_in_a_python_without_our_packages(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.symlink_to(PYTHON.resolve())
    values = run_job(fake_job(tmp_path), bare).values
    assert values["prefill_512"] == pytest.approx(1024.0)
    assert values["decode_128"] == pytest.approx(100.0)
    assert values["decode_batch_8"] == pytest.approx(800.0)
    assert values["second_turn"] == pytest.approx(500.0)
    assert values["load"] >= 0


@pytest.mark.usefixtures("fake_subjects")
@pytest.mark.skipif(not worker.STATUS.is_file(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_the_worker_s_own(tmp_path: Path) -> None:
    ballast = bytearray(128 * 2**20)
    peak = run_job(fake_job(tmp_path), PYTHON).values["peak_memory"]
    assert 1 < peak < len(ballast) / 2**20


@pytest.mark.usefixtures("fake_subjects")
def test_failing_worker_tells_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(WorkerError, match=r"(?s)exit code 1.*last words.*broken model"):
        run_job(fake_job(tmp_path), PYTHON)


class FakeModels:
    """PreparedModels without a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, subject: str, version: str, python: Path) -> Path:
        return self.folder


def bench_fakes(tmp_path: Path, settings: BenchSettings) -> tuple[BenchResult, str]:
    """Result and terminal output of a run; kvfold's bundle and the peers' models are two empty folders."""
    bundle, model = tmp_path / "bundle", tmp_path / "model"
    bundle.mkdir()
    model.mkdir(exist_ok=True)
    printed = io.StringIO()
    models = cast(PreparedModels, FakeModels(model))
    result = run_bench(bundle, PLANS["hybrid"], models, VOCAB, settings, Console(file=printed, width=500))
    return result, printed.getvalue()


@pytest.mark.usefixtures("fake_subjects")
def test_peers_run_and_absent_ones_are_skipped_visibly(tmp_path: Path) -> None:
    settings = BenchSettings(("openvino_genai", "llama_cpp"), rounds=2, workloads="quick")
    result, printed = bench_fakes(tmp_path, settings)
    assert [subject.title for subject in result.subjects] == ["kvfold", "llama.cpp"]
    assert all(len(values) == 2 for subject in result.subjects for values in subject.samples.values())
    assert len(result.skipped) == 1
    assert "OpenVINO GenAI is not installed" in result.skipped[0]
    assert "pip install openvino-genai" in result.skipped[0]
    assert result.skipped[0] in printed


@pytest.mark.usefixtures("fake_subjects")
def test_absent_peer_that_was_named_is_an_error(tmp_path: Path) -> None:
    settings = BenchSettings(("openvino_genai",), required=True, rounds=1, workloads="quick")
    with pytest.raises(TargetError, match=r"(?s)not installed.*leave openvino_genai out of --peers"):
        bench_fakes(tmp_path, settings)


@pytest.mark.usefixtures("fake_subjects")
def test_peer_that_fails_is_out_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken").touch()
    result, printed = bench_fakes(tmp_path, BenchSettings(("llama_cpp",), rounds=2, workloads="quick"))
    assert "round 1: exit code 1" in result.subjects[1].failure
    assert result.subjects[1].samples == {}
    assert len(result.subjects[0].samples["load"]) == 2
    assert "broken model" in printed


@pytest.mark.usefixtures("fake_subjects")
def test_kvfold_itself_may_not_fail(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "broken").touch()
    models = cast(PreparedModels, FakeModels(tmp_path))
    with pytest.raises(TargetError, match=r"(?s)kvfold's engine.*broken model"):
        run_bench(
            tmp_path / "bundle",
            PLANS["hybrid"],
            models,
            VOCAB,
            BenchSettings((), rounds=1),
            Console(file=io.StringIO()),
        )


def result_of_two() -> BenchResult:
    slow = SubjectResult("kvfold", "int8", "0.1.0", {"prefill_512": [300.0, 100.0, 200.0], "load": [0.5]})
    fast = SubjectResult("llama.cpp", "Q8_0", "1.2", {"prefill_512": [461.0], "load": [0.75]})
    return BenchResult(
        command="kvfold bench demo",
        machine=Machine("a CPU", "Linux", "3.11", 0.25, "2026-01-01T00:00:00Z"),
        threads=2,
        rounds=3,
        plan="5 layers keep 2 KV banks",
        metrics=[*workloads.Completion(512, 0).metrics, workloads.LOAD, workloads.MEMORY],
        subjects=[slow, fast],
        skipped=[],
    )


def test_markdown_has_medians_and_marks_the_best_of_each_unit() -> None:
    lines = write_markdown(result_of_two()).splitlines()
    assert lines[0] == "|  | kvfold 0.1.0 (int8) | llama.cpp 1.2 (Q8_0) |"
    assert lines[2] == "| prefill 512, tokens/s | 200 | **461** |"
    assert lines[3] == "| load, s | **0.50** | 0.75 |"
    assert lines[4] == "| peak memory, MiB | - | - |"
    assert lines[-1].startswith(
        "Medians of 3 fresh processes after a warm-up, 2 threads; a CPU; load average at start 0.25"
    )
    assert "`kvfold bench demo`" in lines[-1]
    assert "kvfold's plan: 5 layers keep 2 KV banks; its peers run the model unfolded" in lines[-1]


def test_a_plan_is_described_by_its_windows_and_dtypes() -> None:
    shape = AttentionShape(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    horizon, identity = Preset(preset="horizon", sliding_window=1024), Preset(preset="identity")
    assert describe_plan(build_plan(horizon, shape)) == (
        "30 layers keep 30 KV banks: 5 global in int8, 25 of window 1,024 with 4 sinks in int8"
    )
    assert describe_plan(build_plan(identity, shape)) == "30 layers keep 30 KV banks: 30 global in float32"


def test_markdown_names_who_was_not_measured() -> None:
    result = replace(result_of_two(), skipped=["OpenVINO GenAI is not installed; pip install it"])
    result.subjects[1].failure = "round 2: exit code 1:\nits last words"
    text = write_markdown(result)
    assert "Not measured: OpenVINO GenAI is not installed" in text
    assert "Not measured: llama.cpp failed: round 2: exit code 1" in text
    assert "last words" not in text


def test_terminal_table_shows_every_subject_and_metric() -> None:
    printed = io.StringIO()
    Console(file=printed, width=200).print(draw_table(result_of_two()))
    for text in ("kvfold 0.1.0", "llama.cpp 1.2", "prefill 512", "461", "Q8_0", "tokens/s"):
        assert text in printed.getvalue()


@pytest.mark.parametrize(
    ("value", "text"), [(1011.2, "1,011"), (99.96, "100"), (26.04, "26.0"), (0.254, "0.25"), (None, "-")]
)
def test_values_have_three_digits(value: float | None, text: str) -> None:
    assert format_value(value) == text


def test_json_keeps_raw_samples(tmp_path: Path) -> None:
    result_of_two().save(tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["subjects"][0]["samples"]["prefill_512"] == [300.0, 100.0, 200.0]
    assert content["machine"]["load_average"] == 0.25
    assert content["metrics"][0] == {"key": "prefill_512", "title": "prefill 512", "unit": "tokens/s"}


def test_unknown_peer_is_refused_by_name() -> None:
    run = CliRunner().invoke(command, ["--peers", "llama_cpp,vllm"])
    assert run.exit_code == 2
    assert "'vllm' is no peer" in run.output

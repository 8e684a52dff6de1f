"""`kvfold bench` runs its contenders: the worker protocol, absent and failing peers."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner
from rich.console import Console

from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.rope_config import Rope
from kvfold.pipeline.bench.bench import run_bench
from kvfold.pipeline.bench.bench_results import BenchResult
from kvfold.pipeline.bench.bench_settings import BenchSettings
from kvfold.pipeline.bench.contenders import KVFOLD, PEERS, PEERS_IN_4_BITS, PEERS_ON_CUDA, contender_module
from kvfold.pipeline.bench.contenders.contender import CacheLoad, Limits
from kvfold.pipeline.bench.entrants import OwnBundle
from kvfold.pipeline.bench.prepared_models import PreparedModels
from kvfold.pipeline.bench.processes import bench_worker as worker
from kvfold.pipeline.bench.processes import jobs, process
from kvfold.pipeline.bench.processes.process import WorkerError, run_job
from kvfold.pipeline.commands.measure.bench import command
from kvfold.plugins.contract.errors import TargetError, UnsupportedModelError
from tests.root import ROOT
from tests.runtime.harness import PLANS

VOCAB = 5000
MODEL = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-6,
    ropes=(Rope(theta=5000.0),),
    max_position_embeddings=2048,
)
PYTHON = Path(sys.executable)
LIMITS = Limits(threads=2, cache_loads=(CacheLoad(1, 1000), CacheLoad(8, 128)))
CONTEXT = MODEL.max_position_embeddings


@pytest.mark.parametrize(
    "job",
    [
        jobs.Probe("llama_cpp"),
        jobs.Prepare("llama_cpp", "source", "target"),
        jobs.Measure("quick", CONTEXT, VOCAB, LIMITS, "round 1", "llama_cpp", "model"),
    ],
)
def test_jobs_survive_the_trip(job: jobs.Job) -> None:
    assert jobs.read_job(jobs.write_job(job)) == job


def test_answers_survive_the_trip(tmp_path: Path) -> None:
    answer = jobs.Answer("1.0", {"load": 0.5})
    jobs.write_answer(answer, tmp_path / "answer.json")
    assert jobs.read_answer(tmp_path / "answer.json") == answer


@pytest.mark.parametrize("name", [KVFOLD, *PEERS, *PEERS_IN_4_BITS, *PEERS_ON_CUDA])
def test_contenders_are_alike(name: str) -> None:
    module = contender_module(name)
    assert module.TITLE
    assert module.WEIGHTS
    assert module.PACKAGE in module.INSTALL
    assert module.INSTALL.startswith("pip install ")
    assert callable(module.prepare)
    assert callable(module.load)
    assert module.TITLE in (command.help or "")


def test_a_converter_that_fails_is_heard_last() -> None:
    """What it says, and not a traceback of ours that would hide it."""
    tool = "print('the reason'); raise SystemExit(3)"
    run = f"import sys; sys.path.insert(0, {str(process.ROOT)!r}); "
    run += "from kvfold.pipeline.bench.contenders.run_tool import run_tool; "
    run += f"run_tool([sys.executable, '-c', {tool!r}]); print('not reached')"
    ended = subprocess.run([PYTHON, "-c", run], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "the reason\n")
    assert ended.stderr == f"{PYTHON} ended with exit code 3\n"


def test_contender_modules_import_no_engine() -> None:
    names = ", ".join(repr(name) for name in (KVFOLD, *PEERS, *PEERS_IN_4_BITS, *PEERS_ON_CUDA))
    engines = (
        "{'torch', 'numpy', 'transformers', 'llama_cpp', 'onnxruntime_genai', 'openvino', 'onnxruntime', "
        "'vllm'}"
    )
    code = (
        "import sys; from kvfold.pipeline.bench.processes import bench_worker; "
        "from kvfold.pipeline.bench.contenders import contender_module; "
        f"[contender_module(name) for name in ({names})]; print({engines} & set(sys.modules))"
    )
    run = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True, cwd=process.ROOT)
    assert run.stdout.strip() == "set()"


FAKE = """
import time
from kvfold.pipeline.bench.contenders.contender import Generation

TITLE, WEIGHTS, PACKAGE, INSTALL = "Fake", "int8", "pip", "pip install pip"

def prepare(source, target):
    (target / "model").write_text((source / "config.json").read_text())

class Contender:
    def generate(self, prompts, new_tokens):
        started = time.perf_counter()
        times = [started + 0.5 + 0.01 * step for step in range(new_tokens)]
        return Generation(started, [[7] * new_tokens for _ in prompts], [times] * len(prompts))

def load(model, limits):
    if (model / "broken").exists():
        print("last words")
        raise RuntimeError("broken model")
    return Contender()
"""


@pytest.fixture
def fake_contenders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers whose kvfold and llama_cpp need no engine, and whose openvino_genai is not installed."""
    package = tmp_path / "root" / "kvfold" / "pipeline"
    shutil.copytree(ROOT / "pipeline" / "bench", package / "bench")
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    for name in (KVFOLD, "llama_cpp"):
        (package / "bench" / "contenders" / f"{name}.py").write_text(FAKE)
    absent = FAKE.replace('"pip",', '"kvfold-bench-absent",')
    (package / "bench" / "contenders" / "openvino_genai.py").write_text(absent)
    monkeypatch.setattr(process, "ROOT", tmp_path / "root")


def fake_job(model: Path) -> jobs.Measure:
    return jobs.Measure("quick", CONTEXT, VOCAB, LIMITS, "round 1", "llama_cpp", str(model))


@pytest.mark.usefixtures("fake_contenders")
def test_worker_measures_in_a_python_without_our_packages(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.symlink_to(PYTHON.resolve())
    values = run_job(fake_job(tmp_path), bare).values
    assert values["prefill_512"] == pytest.approx(1024.0)
    assert values["decode_128"] == pytest.approx(100.0)
    assert values["decode_batch_8"] == pytest.approx(800.0)
    assert values["second_turn"] == pytest.approx(500.0)
    assert values["load"] >= 0


@pytest.mark.usefixtures("fake_contenders")
@pytest.mark.skipif(not worker.STATUS.is_file(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_the_worker_s_own(tmp_path: Path) -> None:
    ballast = bytearray(128 * 2**20)
    peak = run_job(fake_job(tmp_path), PYTHON).values["peak_memory"]
    assert 1 < peak < len(ballast) / 2**20


@pytest.mark.usefixtures("fake_contenders")
def test_failing_worker_tells_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(WorkerError, match=r"(?s)exit code 1.*last words.*broken model"):
        run_job(fake_job(tmp_path), PYTHON)


class FakeModels:
    """PreparedModels without a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, contender: str, version: str, python: Path) -> Path:
        return self.folder


def own(*folders: Path) -> list[OwnBundle]:
    """Bundles in these folders, the second in 4 bits."""
    return [
        OwnBundle(folder, PLANS["hybrid"], weights)
        for folder, weights in zip(folders, ("int8", "int4"), strict=False)
    ]


def bench_fakes(
    tmp_path: Path, settings: BenchSettings, model: ModelConfig = MODEL
) -> tuple[BenchResult, str]:
    """Result and terminal output of a run; kvfold's bundle and the peers' models are two empty folders."""
    bundle, peers = tmp_path / "bundle", tmp_path / "model"
    bundle.mkdir()
    peers.mkdir(exist_ok=True)
    printed = io.StringIO()
    models = cast(PreparedModels, FakeModels(peers))
    result = run_bench(own(bundle), models, model, settings, Console(file=printed, width=500))
    return result, printed.getvalue()


@pytest.mark.usefixtures("fake_contenders")
def test_peers_run_and_absent_ones_are_skipped_visibly(tmp_path: Path) -> None:
    settings = BenchSettings(("openvino_genai", "llama_cpp"), rounds=2, workloads="quick")
    result, printed = bench_fakes(tmp_path, settings)
    assert [contender.title for contender in result.contenders] == ["kvfold", "llama.cpp"]
    assert all(len(values) == 2 for contender in result.contenders for values in contender.samples.values())
    assert len(result.skipped) == 1
    assert "OpenVINO GenAI is not installed" in result.skipped[0]
    assert "pip install openvino-genai" in result.skipped[0]
    assert result.skipped[0] in printed
    for title in ("kvfold", "llama.cpp"):
        assert re.search(rf"^  > {title} +round 2 of 2$", printed, re.M)


@pytest.mark.usefixtures("fake_contenders")
def test_engines_of_several_bundles_stand_side_by_side(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    models, silent = cast(PreparedModels, FakeModels(tmp_path)), Console(file=io.StringIO())
    result = run_bench(own(*folders), models, MODEL, BenchSettings((), rounds=2, workloads="quick"), silent)
    assert [(each.title, each.weights) for each in result.contenders] == [
        ("kvfold first", "int8"),
        ("kvfold second", "int4"),
    ]
    assert all(len(each.samples["decode_128"]) == 2 for each in result.contenders)
    first, second = result.plan.split("; ")
    assert first.startswith("kvfold first: ") and second.startswith("kvfold second: ")


@pytest.mark.usefixtures("fake_contenders")
def test_absent_peer_that_was_named_is_an_error(tmp_path: Path) -> None:
    settings = BenchSettings(("openvino_genai",), required=True, rounds=1, workloads="quick")
    with pytest.raises(TargetError, match=r"(?s)not installed.*leave openvino_genai out of --peers"):
        bench_fakes(tmp_path, settings)


@pytest.mark.usefixtures("fake_contenders")
def test_peer_that_fails_is_out_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken").touch()
    result, printed = bench_fakes(tmp_path, BenchSettings(("llama_cpp",), rounds=2, workloads="quick"))
    assert "round 1: exit code 1" in result.contenders[1].failure
    assert result.contenders[1].samples == {}
    assert len(result.contenders[0].samples["load"]) == 2
    assert "broken model" in printed


@pytest.mark.usefixtures("fake_contenders")
def test_kvfold_itself_may_not_fail(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "broken").touch()
    models = cast(PreparedModels, FakeModels(tmp_path))
    with pytest.raises(TargetError, match=r"(?s)kvfold's engine.*broken model"):
        run_bench(
            own(tmp_path / "bundle"),
            models,
            MODEL,
            BenchSettings((), rounds=1),
            Console(file=io.StringIO()),
        )


@pytest.mark.usefixtures("fake_contenders")
def test_workloads_longer_than_the_context_are_left_out_visibly(tmp_path: Path) -> None:
    short = MODEL.model_copy(update={"max_position_embeddings": 512})
    result, printed = bench_fakes(tmp_path, BenchSettings((), rounds=1, workloads="quick"), short)
    keys = {metric.key for metric in result.metrics}
    assert keys == {"prefill_128", "decode_128", "decode_batch_8", "peak_memory", "load"}
    assert keys - {"peak_memory"} <= result.contenders[0].samples.keys() <= keys
    (first, second) = result.skipped
    assert first == "prefill 512: a sequence of 513 tokens, the model's context is 512"
    assert second.startswith("2nd turn of 500 and its 64 new tokens alone: a sequence of 569 tokens")
    assert first in printed


def test_a_context_too_short_for_any_workload_is_refused(tmp_path: Path) -> None:
    short = MODEL.model_copy(update={"max_position_embeddings": 128})
    with pytest.raises(UnsupportedModelError, match=r"context is 128 tokens, .* sequences of 145 and"):
        bench_fakes(tmp_path, BenchSettings((), workloads="quick"), short)


def test_unknown_peer_is_refused_by_name() -> None:
    run = CliRunner().invoke(command, ["--peers", "llama_cpp,vllm"])
    assert run.exit_code == 2
    assert "'vllm' is no peer" in run.output

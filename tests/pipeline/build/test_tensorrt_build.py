"""From a recipe to a TensorRT-RTX engine of a tiny random llama: built for real, executed nowhere here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from kvfold import LLM
from kvfold.pipeline.build.tensorrt import tensorrt_plan as module
from kvfold.pipeline.build.tensorrt.architectures import architectures_of, build_settings, why_plan_lacks
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage import target_stage
from kvfold.plugins.contract.errors import KernelError, RecipeError, TargetError
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.runtime.bundle import open_bundle
from kvfold.runtime.engine.cuda import driver_calls
from kvfold.runtime.engine.engine_config import EngineConfig
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import write_tiny_recipe
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status

pytest.importorskip("tensorrt_rtx", reason="would build a plan with TensorRT-RTX; not installed")

TARGET = "tensorrt-rtx"
ARCHITECTURES = (80, 120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its recipe."""
    folder = tmp_path_factory.mktemp("tensorrt")
    write_tiny_recipe(folder)
    return folder


def build(folder: Path, root: Path, **changes: object) -> list[str]:
    """The stages that ran."""
    recipe = load_recipe(str(folder / "tiny.yaml"), TARGET, ARCHITECTURES)
    section = Recipe.model_validate(
        {**recipe.model_dump(by_alias=True), "tensorrt": {**recipe.tensorrt.model_dump(), **changes}}
    )
    outcomes = run_stages(section, root, STAGES, QuietDisplay(), target_stage("build", TARGET))
    return [outcome.name for outcome in outcomes if outcome.ran]


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    """With an engine for SM 80 and SM 120."""
    build(folder, folder / "bundle")
    return folder / "bundle"


def test_the_engine_states_its_facts(bundle: Path) -> None:
    """The build checks its log too: every int8 linear is an int8 GEMM, every attention layer the plugin."""
    directory = open_bundle(bundle, verify="full").directory(f"engine/{TARGET}")
    config = EngineConfig.load(directory)
    facts = config.tensorrt
    assert facts is not None
    assert config.target == TARGET
    assert facts.library == "tensorrt_rtx"
    assert facts.architectures == ARCHITECTURES
    assert facts.kernels_sha256 == KernelLibrary.load(directory / "kernels").sha256
    assert set(facts.linears.values()) <= {"int8", "float16"}
    assert facts.linears["model.layers.0.mlp.down_proj"] in ("int8", "float16")
    assert (facts.decode.max_tokens, facts.prefill.max_tokens) == (4, 64)
    assert 0 < facts.build_seconds < 600
    assert 0 < facts.peak_build_bytes < 8e9
    assert (directory / "model.plan").stat().st_size > 10_000
    assert config.passes["tensorrt_attention"] == 4


def test_a_second_build_does_nothing(folder: Path, bundle: Path) -> None:
    assert build(folder, bundle) == []


def test_engines_of_several_targets_live_side_by_side(folder: Path, bundle: Path) -> None:
    root = shutil.copytree(bundle, folder / "both")
    recipe = load_recipe(str(folder / "tiny.yaml"), target="cpu")
    outcomes = run_stages(recipe, root, STAGES, QuietDisplay(), target_stage("build", "cpu"))
    assert [outcome.name for outcome in outcomes if outcome.ran] == ["build-cpu"]
    assert LLM.load(root).generate("a cab")[0].token_ids
    assert build(folder, root) == []


def test_running_without_a_gpu_is_refused(bundle: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU; would show the refusal without one")
    with pytest.raises(TargetError):
        LLM.load(bundle, target=TARGET)


def test_a_crash_of_the_library_is_an_error_with_the_log(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The building process crashes: the pipeline lives, the old engine stays and the log is kept."""
    root = shutil.copytree(bundle, folder / "crash")
    before = (root / "engine" / TARGET / "model.plan").read_bytes()

    crashing = folder / "python"
    crashing.write_text("#!/bin/sh\necho '[E] no memory for layer 3' >&2\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(TargetError, match="ended by signal 11:\n  no memory for layer 3") as caught:
        build(folder, root, max_num_seqs=3)
    assert str(root / f"{TARGET}-build.log") in str(caught.value)
    assert (root / f"{TARGET}-build.log").is_file()
    assert (root / "engine" / TARGET / "model.plan").read_bytes() == before


def test_sm75_with_bfloat16_is_refused(folder: Path, bundle: Path) -> None:
    root = shutil.copytree(bundle, folder / "sm75")
    with pytest.raises(KernelError, match="SM 75 has no bfloat16"):
        build(folder, root, architectures=(75,), activation_dtype="bfloat16")


def test_a_failed_check_of_the_log_keeps_the_log(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(bundle, folder / "other")
    monkeypatch.setattr(module, "differences", lambda *given: ("lm_head is float32",))
    with pytest.raises(TargetError, match=rf"1 places:\n  lm_head is float32(?s:.)*{TARGET}-build.log"):
        build(folder, root, max_num_seqs=3)
    assert "LayerType: gemm" in (root / f"{TARGET}-build.log").read_text()


def test_another_version_of_the_library_builds_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(str(folder / "tiny.yaml"), TARGET, ARCHITECTURES)
    before = build_settings(recipe)
    monkeypatch.setattr("kvfold.pipeline.build.tensorrt.architectures.version", lambda package: "9.9")
    assert build_settings(recipe) != before


def test_the_worker_ends_when_the_pipeline_is_killed(folder: Path, bundle: Path) -> None:
    """Killed without a chance to clean up, in the middle of a build: no orphan goes on compiling."""
    root = shutil.copytree(bundle, folder / "killed")
    options = ["-o", str(root), "--target", TARGET, "--sm", "86"]
    command = [sys.executable, "-m", "kvfold.pipeline.cli", "build", str(folder / "tiny.yaml"), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as pipeline:
        workers: list[psutil.Process] = []
        while not workers and pipeline.poll() is None:
            with suppress(psutil.NoSuchProcess):  # a compiler's process that has just ended
                children = psutil.Process(pipeline.pid).children()
                workers = [
                    child
                    for child in children
                    if "kvfold.pipeline.build.tensorrt.build_worker" in child.cmdline()
                ]
        assert workers, "the build ended before its worker was seen"
        pipeline.kill()
    psutil.wait_procs(workers, timeout=10)
    assert not workers[0].is_running()


@pytest.mark.parametrize("architecture", [75, 121])
def test_the_oldest_and_the_newest_gpu(folder: Path, bundle: Path, architecture: int) -> None:
    root = shutil.copytree(bundle, folder / f"only{architecture}")
    assert build(folder, root, architectures=(architecture,)) == [target_stage("build", TARGET)]
    facts = EngineConfig.load(root / "engine" / TARGET).tensorrt
    assert facts is not None and facts.architectures == (architecture,)


def test_architectures_must_be_named_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandInDriver()
    driver.fails["cuInit"] = Status.CUDA_ERROR_NO_DEVICE
    monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
    with pytest.raises(TargetError, match="name the GPUs to build for: --sm 80,86,89,120"):
        architectures_of(load_recipe("horizon", TARGET))


def test_a_plan_that_was_built_for_the_card_that_is_there_is_taken_as_it_is(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def why_lacks(architecture: int, *named: int) -> str | None:
        driver = StandInDriver(architecture)
        monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
        why = why_plan_lacks(load_recipe(str(folder / "tiny.yaml"), TARGET, named), bundle)
        assert not driver.count("cuDevicePrimaryCtxRetain")
        return why

    assert why_lacks(80) is None and why_lacks(120) is None
    assert why_lacks(89) == why_lacks(80, 89, 120) == "it was not built for SM 89"
    assert build(folder, bundle, architectures=(80,)) == []


def test_a_plan_with_a_damaged_kernel_is_built_again(folder: Path, bundle: Path) -> None:
    """Its size and time are those that the manifest has, as after an error of the disk."""
    root = shutil.copytree(bundle, folder / "rotted")
    cubin = next((root / "engine" / TARGET / "kernels").glob("*.cubin"))
    whole, status = cubin.read_bytes(), cubin.stat()
    cubin.write_bytes(bytes(len(whole)))
    os.utime(cubin, ns=(status.st_atime_ns, status.st_mtime_ns))
    recipe = load_recipe(str(folder / "tiny.yaml"), TARGET, ARCHITECTURES)
    assert why_plan_lacks(recipe, root) == f"{cubin} is not the recorded kernel"
    assert build(folder, root) == [target_stage("build", TARGET)]
    assert cubin.read_bytes() == whole


def test_architectures_of_the_command_line() -> None:
    assert load_recipe("horizon", TARGET, (86, 80, 86)).tensorrt.architectures == (80, 86)
    with pytest.raises(RecipeError, match="architectures"):
        load_recipe("horizon", TARGET, (61,))
    for target in ("cpu", "tensorrt"):
        with pytest.raises(RecipeError, match=f"this one is {target}: add --target cuda or tensorrt-rtx"):
            load_recipe("horizon", target, (80,))


def test_a_chunk_that_no_step_can_take_is_refused_at_once(folder: Path) -> None:
    text = (folder / "tiny.yaml").read_text()
    (folder / "chunk.yaml").write_text(text.replace("prefill_chunk: 40", "prefill_chunk: 65"))
    assert load_recipe(str(folder / "chunk.yaml")).validate_on.prefill_chunk == 65
    with pytest.raises(RecipeError, match=r"prefill_chunk is 65, above tensorrt\.max_num_batched_tokens 64"):
        load_recipe(str(folder / "chunk.yaml"), TARGET, ARCHITECTURES)

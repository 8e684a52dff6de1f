"""Preflight names what is wrong with a plan here and what to rebuild; memory is counted part by part."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kvfold.plugins.contract.errors import BundleError, CapacityError, KernelError, TargetError
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.memory_check import MARGIN, check_memory
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.kv_pools import kv_pools
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.engine.tensorrt.preflight import check_files, check_gpu, import_library
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver
from tests.runtime.engine.tensorrt.tensorrt_harness import VERSION, make_config, make_facts, write_engine
from tests.runtime.synthetic_engine import make_plan

PLAN = make_plan((None, 0), (32, 4))
AGAIN = "`kvfold build RECIPE --target tensorrt-rtx --sm 80,89`"


def test_a_whole_engine_passes(tmp_path: Path) -> None:
    config = make_config(make_facts(PLAN))
    files = EngineFiles(write_engine(tmp_path / "engine", config), config, PLAN)
    assert check_files(files) == config.tensorrt


def _remove_plan(directory: Path) -> None:
    (directory / "model.plan").unlink()


def _nothing(directory: Path) -> None:
    """A folder that is as it should be; its facts are not."""


@pytest.mark.parametrize(
    ("config", "damage", "message"),
    [
        (make_config(None), _nothing, "no TensorRT plan but an engine for cpu"),
        (make_config(make_facts(PLAN)), _remove_plan, f"model.plan is missing; build it again: {AGAIN}"),
        (make_config(make_facts(PLAN, plugin_version="0")), _nothing, "version 0 of the attention plugin"),
        (make_config(make_facts(PLAN, kernels_sha256="f" * 64)), _nothing, "(ffffffffffff...)"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    config: EngineConfig, damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    directory = write_engine(tmp_path / "engine", config)
    damage(directory)
    with pytest.raises(TargetError, match=re.escape(message)):
        check_files(EngineFiles(directory, config, PLAN))


@pytest.mark.parametrize(
    "groups", [{}, {"global": 9}, {"global": 9, "window32_sink4": 9, "window64_sink4": 9}]
)
@pytest.mark.parametrize("limits", ["decode", "prefill", "max_pages"])
def test_limits_of_other_groups_than_the_plan_s_are_refused(
    limits: str, groups: dict[str, int], tmp_path: Path
) -> None:
    facts = make_facts(PLAN)
    changed = groups if limits == "max_pages" else facts.decode.model_copy(update={"max_table_width": groups})
    config = make_config(facts.model_copy(update={limits: changed}))
    with pytest.raises(BundleError, match=r"the plan's are global, window32_sink4; build the engine again"):
        EngineFiles.read(write_engine(tmp_path / "engine", config), PLAN)


@pytest.mark.parametrize("backend", ["cpu", "cuda", "tensorrt"])
def test_only_a_tensorrt_engine_has_tensorrt_s_facts(backend: str, tmp_path: Path) -> None:
    facts = make_facts(PLAN) if backend != "tensorrt" else None
    config = make_config(facts).model_copy(update={"backend": backend})
    with pytest.raises(BundleError, match=f"backend is '{backend}', and only a backend 'tensorrt' has"):
        EngineFiles.read(write_engine(tmp_path / "engine", config), PLAN)


def test_a_damaged_cubin_is_a_kernel_error(tmp_path: Path) -> None:
    config = make_config(make_facts(PLAN))
    directory = write_engine(tmp_path / "engine", config)
    (directory / "kernels" / "append.cubin").write_bytes(b"other")
    with pytest.raises(KernelError, match="not the recorded kernel"):
        check_files(EngineFiles(directory, config, PLAN))


def test_a_library_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(make_facts(PLAN))
    assert config.tensorrt is not None
    library = ModuleType("tensorrt_rtx")
    monkeypatch.setattr(library, "__version__", "1.8.0", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    with pytest.raises(TargetError, match=f"built by tensorrt_rtx {VERSION}, installed is 1.8.0.*{AGAIN}"):
        import_library(config, config.tensorrt)
    monkeypatch.setattr(library, "__version__", VERSION)
    assert import_library(config, config.tensorrt) is library


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(make_facts(PLAN, "tensorrt"))
    assert config.tensorrt is not None
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TargetError, match=re.escape("run `pip install 'kvfold[tensorrt]'`")):
        import_library(config, config.tensorrt)


def test_another_gpu_is_named_with_the_command_that_adds_it() -> None:
    device = Device(StandInDriver(architecture=86))
    config = make_config(make_facts(PLAN))
    assert config.tensorrt is not None
    expected = "Stand-in GPU with SM 86, the plan was built for SM 80, 89; .*--sm 80,86,89`"
    with pytest.raises(TargetError, match=expected):
        check_gpu(config, config.tensorrt, device)
    config = make_config(make_facts(PLAN, "tensorrt"))
    assert config.tensorrt is not None
    with pytest.raises(TargetError, match=r"build it again: `kvfold build RECIPE --target tensorrt`$"):
        check_gpu(config, config.tensorrt, device)


def test_memory_is_refused_with_every_part() -> None:
    parts = {"weights": 130 << 20, "KV pools": (1 << 30) + 1, "workspace": 0}
    free = MARGIN + sum(parts.values())
    check_memory(parts, free, "build it for less")
    expected = (
        "needs 1,155 MiB of GPU memory: weights 130 MiB, KV pools 1,025 MiB, workspace 0 MiB; 1,410 MiB are "
        "free, of which 256 MiB are kept for CUDA graphs and kernels. Lower kv_cache_bytes, end other "
        "programs on the GPU, or build it for less"
    )
    with pytest.raises(CapacityError, match=re.escape(expected)):
        check_memory(parts, free - 1, "build it for less")


def test_pool_bytes_are_those_of_all_banks() -> None:
    # 16 tokens of 2 float32 channels, K and V: 256 bytes a page of one bank.
    info = EngineInfo(PLAN, 0, {"global": 10, "window32_sink4": 3}, {}, 97, 512, "stand-in")
    assert sum(pool.nbytes for pool in kv_pools(info)) == 13 * 256

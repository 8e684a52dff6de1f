"""Loading the plugin into a TensorRT library, and how its errors come out of that library's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.cuda_library import library_path
from kvfold.plugins.tensorrt import load_plugins as loading
from tests.plugins.cuda.fake_kernels import fake_kernels
from tests.plugins.tensorrt.attention_models import SPEC
from tests.root import ROOT

# Loads the libraries that are named before ours; ours twice.
LOAD = """
import sys
from pathlib import Path
import tensorrt_rtx as trt
from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.tensorrt.load_plugins import load_plugins
for library in sys.argv[2:]:
    assert trt.get_plugin_registry().load_library(library) is not None
try:
    for _ in range(2):
        load_plugins(trt, Path(sys.argv[1]))
    print(trt.get_plugin_registry().get_creator("PagedAttention", "1", "kvfold").name)
except KernelError as error:
    print(error)
"""


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    fake_kernels((SPEC,), (86,), tmp_path)
    return tmp_path


def load(kernels: Path, *libraries: Path) -> str:
    """What the process printed."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; it would load the plugin")
    command = [sys.executable, "-c", LOAD, str(kernels), *map(str, libraries)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_the_registry_has_the_plugin_however_often_it_is_loaded(kernels: Path) -> None:
    assert load(kernels) == "PagedAttention"


def test_a_plugin_of_another_library_is_not_overruled(kernels: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(library_path(), tmp_path / "other.so"))
    printed = load(kernels, other)
    assert printed == f"tensorrt_rtx did not load {library_path()}; its own words stand above"


def test_kernels_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"kernels\.json cannot be read \(No such file"):
        loading.load_plugins(pytest, tmp_path)


class Plugin:
    """Stands in for the plugin: what its callbacks found, told once."""

    def __init__(self) -> None:
        self.problem: bytes | None = b"of an earlier call"

    def kvfold_take_error(self) -> bytes | None:
        problem, self.problem = self.problem, None
        return problem


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Plugin:
    plugin = Plugin()
    monkeypatch.setattr(loading, "load_functions", lambda: plugin)
    return plugin


def fail(problem: bytes | None) -> Callable[[Plugin], None]:
    """What TensorRT does when a callback has found a problem."""

    def raising(plugin: Plugin) -> None:
        plugin.problem = problem
        raise RuntimeError("could not create the plugin")

    return raising


def test_an_error_of_a_callback_comes_in_place_of_tensorrts(plugin: Plugin) -> None:
    with (
        pytest.raises(KernelError, match="attention node a: no kernels") as caught,
        loading.surfacing_errors(),
    ):
        fail(b"attention node a: no kernels")(plugin)
    assert str(caught.value.__cause__) == "could not create the plugin"


def test_an_error_that_tensorrt_passes_over_comes_out_all_the_same(plugin: Plugin) -> None:
    with pytest.raises(KernelError, match="no scratch"), loading.surfacing_errors():
        plugin.problem = b"no scratch"


def test_errors_of_tensorrt_itself_pass(plugin: Plugin) -> None:
    with pytest.raises(RuntimeError, match="could not create"), loading.surfacing_errors():
        fail(None)(plugin)
    with loading.surfacing_errors():
        pass

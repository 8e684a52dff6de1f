"""The target cuda from a recipe to logits, without a GPU: see `engine_on_host` for what stands in for one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kvfold.export.graph.attention import find_attention
from kvfold.export.graph.model_files import load_model
from kvfold.pipeline.build.cuda_kernels import architectures_of
from kvfold.plugins.cuda.attention_spec import ARCHITECTURES
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.sampling_launches import SAMPLING_VARIANTS
from kvfold.runtime.engine.cuda import driver_calls
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from tests.gpu.conftest import RecordProperty
from tests.gpu.distances import MAX_KL_OF_FLOAT16, MAX_KL_OF_INT8_CACHE, check_logits
from tests.gpu.read_texts import NUM_PAGES, read_texts
from tests.gpu.tiny_bundle import TinyBundle
from tests.paging import budget_of
from tests.plugins.cuda.interpreter import interpret
from tests.plugins.cuda.onnxruntime.conftest import compile_libraries
from tests.plugins.cuda.onnxruntime.engine_on_host import read_on_host
from tests.plugins.cuda.onnxruntime.onnxruntime_op import Libraries
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status

LENGTH = 60


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return compile_libraries(tmp_path_factory.getbasetemp() / "host_gpu")


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("character-sinks-int8", MAX_KL_OF_INT8_CACHE),
        ("character-head_sink-int8", MAX_KL_OF_INT8_CACHE),
        ("character-head_sink-float16", MAX_KL_OF_FLOAT16),
    ],
)
def test_a_built_engine_says_what_the_folded_model_does(
    name: str, bound: float, tmp_path: Path, libraries: Libraries, record_property: RecordProperty
) -> None:
    """Or what the engine on the CPU does, where caches are int8."""
    tiny = TinyBundle(tmp_path, name)
    engine = tiny.build("cuda", (75, 80))
    library = KernelLibrary.load(engine / KERNELS_FOLDER)
    assert library.architectures == (75, 80)
    named = {node.attributes["kernels"].value for node in find_attention(load_model(engine / "model.onnx"))}
    assert named == {library.sha256}
    assert {variant.name for variant in SAMPLING_VARIANTS.values()} <= {
        each.variant for each in library.kernels
    }
    texts = tiny.texts[:2, :LENGTH]
    logits = interpret(read_on_host, libraries, engine, tiny.plan, texts, tmp_path / "host")
    reference = cpu_logits(tiny, texts) if "int8" in name else tiny.folded_logits[:2, :LENGTH]
    check_logits(record_property, "reference || cuda", reference, logits, bound)


def cpu_logits(tiny: TinyBundle, texts: np.ndarray) -> np.ndarray:
    files = EngineFiles.read(tiny.build("cpu"), tiny.plan)
    return read_texts(OnnxRuntimeEngine.load(files, budget_of(files, NUM_PAGES)), tiny.plan, texts)


def test_without_a_gpu_kernels_are_compiled_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandInDriver()
    driver.fails["cuInit"] = Status.CUDA_ERROR_NO_DEVICE
    monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
    tiny = TinyBundle(tmp_path, "character-sinks-float16")
    assert architectures_of(tiny.load("cuda")) == ARCHITECTURES
    assert architectures_of(tiny.load("cuda", (90,))) == (90,)
    bfloat16 = TinyBundle(tmp_path, "character-sinks-bfloat16")
    assert architectures_of(bfloat16.load("cuda")) == ARCHITECTURES[1:]


def test_an_engine_with_kernels_for_the_card_that_is_there_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `kvfold build RECIPE --sm 75,80` elsewhere. Looking at the card opens no context on it."""

    def build_on(architecture: int, *named: int) -> tuple[int, ...]:
        driver = StandInDriver(architecture)
        monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
        engine = tiny.build("cuda", named)
        assert driver.count("cuInit") or named
        assert not driver.count("cuDevicePrimaryCtxRetain")
        return KernelLibrary.load(engine / KERNELS_FOLDER).architectures

    tiny = TinyBundle(tmp_path, "character-sinks-float16")
    assert build_on(90, 75, 80) == (75, 80)
    built = (tiny.root / "manifest.json").read_bytes()
    for card in (75, 80, 86, 89):  # kernels for SM 80 run on later minors
        assert build_on(card) == (75, 80)
    assert build_on(90, 80) == (75, 80)
    assert (tiny.root / "manifest.json").read_bytes() == built
    assert build_on(90) == (90,)
    assert build_on(90, 75, 90) == (75, 90)


def test_an_engine_with_a_damaged_kernel_is_built_again(tmp_path: Path) -> None:
    """Its size and time are those that the manifest has, as after an error of the disk."""
    tiny = TinyBundle(tmp_path, "character-sinks-float16")
    cubin = next((tiny.build("cuda", (80,)) / KERNELS_FOLDER).glob("*.cubin"))
    whole, status = cubin.read_bytes(), cubin.stat()
    cubin.write_bytes(bytes(len(whole)))
    os.utime(cubin, ns=(status.st_atime_ns, status.st_mtime_ns))
    tiny.build("cuda", (80,))
    assert cubin.read_bytes() == whole

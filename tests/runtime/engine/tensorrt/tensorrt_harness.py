"""A TensorRT engine over the stand-ins, from a folder as the build writes it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary
from kvfold.plugins.tensorrt.node_form import PLUGIN_VERSION
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.engine_config import EngineConfig, StepLimits, TensorRTFacts
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.slabs import bytes_of_slabs
from kvfold.runtime.engine.tensorrt import loaded_plan
from kvfold.runtime.engine.tensorrt.tensorrt_engine import TensorRTEngine
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver
from tests.runtime.engine.tensorrt.tensorrt_stand_in import Model, StandInTensorRT

VERSION = "1.7.1.116"
TARGETS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


def make_facts(
    plan: FoldPlan, library: str = "tensorrt_rtx", width: int = 32, **changes: Any
) -> TensorRTFacts:
    """Facts of a small plan for SM 80 and 89; `changes` replace single ones."""
    widths = {group.name: width for group in plan.groups}
    facts: dict[str, Any] = {
        "library": library,
        "version": VERSION,
        "architectures": (80, 89),
        "plugin": "kvfold::PagedAttention",
        "plugin_version": PLUGIN_VERSION,
        "kernels_sha256": _KERNELS.sha256,
        "activation_dtype": "float16",
        "decode": StepLimits(max_tokens=6, max_sequences=6, max_table_width=widths, max_logits=6),
        "prefill": StepLimits(max_tokens=64, max_sequences=6, max_table_width=widths, max_logits=6),
        "max_pages": {group.name: 1 << 20 for group in plan.groups},
        "linears": {},
        "build_seconds": 1.0,
        "peak_build_bytes": 1,
    }
    return TensorRTFacts(**{**facts, **changes})


def make_config(facts: TensorRTFacts | None, vocab: int = 97, context: int = 512) -> EngineConfig:
    """`engine.json` of a plan, or of a CPU engine."""
    target = TARGETS[facts.library] if facts else "cpu"
    return EngineConfig(
        target=target,
        backend="tensorrt" if facts else "cpu",
        vocab_size=vocab,
        max_context_length=context,
        fingerprint="stand-in",
        tensorrt=facts,
    )


def write_engine(directory: Path, config: EngineConfig, content: bytes = b"plan" * 256) -> Path:
    """An engine's folder."""
    (directory / "kernels").mkdir(parents=True)
    config.save(directory)
    (directory / "model.plan").write_bytes(content)
    (directory / "kernels" / "append.cubin").write_bytes(_CUBIN)
    _KERNELS.save(directory / "kernels")
    return directory


class Machine:
    """A machine with a GPU and a library, both stand-ins, for the length of a test.

    Attributes:
        driver: of the GPU.
        trt: the library; set by `load`.
        loaded: arguments of the call that loads the plugin.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, directory: Path, driver: StandInDriver | None = None
    ) -> None:
        self._patch = patch
        self._directory = directory
        self.driver = driver or StandInDriver()
        self.loaded: list[tuple[Any, ...]] = []
        patch.setattr(Device, "open", lambda: Device(self.driver))
        patch.setattr(loaded_plan, "load_plugins", lambda *arguments: self.loaded.append(arguments))

    def load(
        self,
        plan: FoldPlan,
        pages: int | dict[str, int] = 64,
        config: EngineConfig | None = None,
        content: bytes = b"plan" * 256,
        workspace_bytes: int = 4096,
    ) -> TensorRTEngine:
        """Write an engine's folder and load it, with memory in the first slab of each group."""
        config = config or make_config(make_facts(plan))
        assert config.tensorrt is not None
        limits = (config.tensorrt.decode, config.tensorrt.prefill)
        model = Model(plan, config.vocab_size, limits, workspace_bytes=workspace_bytes)
        self.trt = StandInTensorRT(config.tensorrt.library, self.driver, model, VERSION)
        self._patch.setitem(sys.modules, config.tensorrt.library, self.trt)
        num_pages = pages if isinstance(pages, dict) else {group.name: pages for group in plan.groups}
        files = EngineFiles.read(write_engine(self._directory, config, content), plan)
        engine = TensorRTEngine.load(files, bytes_of_slabs(plan, num_pages, files.slab_pages))
        for group in num_pages:
            engine.pages.commit(group, [0])
        return engine


_CUBIN = b"a cubin"
_KERNELS = KernelLibrary(
    triton="3.9.0",
    kernels=(
        CompiledKernel(
            variant="append",
            architecture=80,
            symbol="append",
            file="append.cubin",
            sha256=hashlib.sha256(_CUBIN).hexdigest(),
            num_warps=4,
            shared_bytes=0,
            registers=32,
            spill_bytes=0,
            arguments=("tokens",),
            grid=("tokens", "one", "one"),
        ),
    ),
)

"""EngineConfig: what `engine/<target>/engine.json` says of a built engine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.fold_plan import describe_errors
from kvfold.plugins.contract.record import Record

ENGINE_FILE = "engine.json"
# Beside it in a TensorRT engine.
PLAN_FILE = "model.plan"
KERNELS_FOLDER = "kernels"
# What builds a target's engine and runs it; targets may share one.
Backend = Literal["cpu", "cuda", "tensorrt"]
# Modules that build and run its plans.
TensorRTLibrary = Literal["tensorrt", "tensorrt_rtx"]


class StepLimits(Record):
    """The steps that one optimisation profile of a TensorRT engine takes.

    Attributes:
        max_tokens: largest T; in the decode profile T equals B.
        max_sequences: largest B.
        max_table_width: most columns of each group's block table.
        max_logits: largest R, rows whose logits are wanted.
    """

    max_tokens: int = Field(ge=1)
    max_sequences: int = Field(ge=1)
    max_table_width: dict[str, int]
    max_logits: int = Field(ge=1)


class TensorRTFacts(Record):
    """What a TensorRT plan was built with, and so what it takes to run it.

    Attributes:
        library: the library that built it; a plan runs in no other.
        version: of that library.
        architectures: SM versions the plan and its kernels were built for.
        plugin, plugin_version: name with namespace, and version, as in `plugins.tensorrt.node_form`.
        kernels_sha256: of the kernel library beside the plan.
        activation_dtype: of the graph's activations.
        decode, prefill: limits of the two optimisation profiles, 0 and 1 in the plan.
        max_pages: most pages of each group's KV pool.
        linears: precision of every linear by module path; the build log was checked for it.
        unconfirmed: what the log did not confirm; none for TensorRT-RTX, where that fails the build.
        build_seconds: how long the build took.
        peak_build_bytes: largest resident memory of the build's process.
    """

    library: TensorRTLibrary
    version: str
    architectures: tuple[int, ...]
    plugin: str
    plugin_version: str
    kernels_sha256: str
    activation_dtype: Literal["float16", "bfloat16"]
    decode: StepLimits
    prefill: StepLimits
    max_pages: dict[str, int]
    linears: dict[str, str]
    unconfirmed: tuple[str, ...] = ()
    build_seconds: float
    peak_build_bytes: int


class EngineConfig(Record):
    """Facts of one built engine.

    Attributes:
        target: what it was built for.
        backend: of the target.
        vocab_size: width of the logits.
        max_context_length: longest sequence in tokens (rows of the RoPE tables).
        fingerprint: identifies weights, plan and scales.
        passes: how often each graph pass matched when the graph was lowered.
        tensorrt: of a TensorRT plan; absent for other targets.
    """

    target: str
    backend: Backend
    vocab_size: int = Field(ge=1)
    max_context_length: int = Field(ge=1)
    fingerprint: str
    passes: dict[str, int] = Field(default_factory=dict)
    tensorrt: TensorRTFacts | None = None

    @classmethod
    def load(cls, directory: Path) -> EngineConfig:
        """Read `engine.json` of an engine's directory.

        Raises:
            BundleError: another version of kvfold wrote it.
        """
        try:
            return cls.model_validate_json((directory / ENGINE_FILE).read_bytes())
        except ValidationError as error:
            problems = describe_errors(str(directory / ENGINE_FILE), error)
            raise BundleError(f"{problems}\nbuild the engine again with `kvfold build`") from error

    def save(self, directory: Path) -> None:
        """Write `engine.json` into an engine's directory."""
        (directory / ENGINE_FILE).write_text(self.model_dump_json(indent=2) + "\n")

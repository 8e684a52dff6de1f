"""EngineConfig: what `engine/<target>/engine.json` says of a built engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from kvfold.plugins.contract.record import Record
from kvfold.runtime.bundle import CONFIG, FOLD_PLAN, QUANTIZATION, SCALES, WEIGHTS, read_record

ENGINE_FILE = "engine.json"
# Beside it in a TensorRT engine.
PLAN_FILE = "model.plan"
KERNELS_FOLDER = "kernels"
# What builds a target's engine and runs it; targets may share one.
Backend = Literal["cpu", "cuda", "tensorrt"]
# Files of a bundle that an engine is built from, in the order of its fingerprint.
SOURCES = (CONFIG, FOLD_PLAN, WEIGHTS, SCALES, QUANTIZATION)
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
    max_table_width: dict[str, PositiveInt]
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
    max_pages: dict[str, PositiveInt]
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
        fingerprint: of the files that it was built from (`fingerprint_of`).
        passes: how often each graph pass matched when the graph was lowered.
        tensorrt: of a TensorRT plan; absent for other backends.
    """

    target: str
    backend: Backend
    vocab_size: int = Field(ge=1)
    max_context_length: int = Field(ge=1)
    fingerprint: str
    passes: dict[str, NonNegativeInt] = Field(default_factory=dict)
    tensorrt: TensorRTFacts | None = None

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if (self.backend == "tensorrt") != (self.tensorrt is not None):
            raise ValueError(f"backend is {self.backend!r}, and only a backend 'tensorrt' has a key tensorrt")
        return self

    @classmethod
    def load(cls, directory: Path) -> EngineConfig:
        """Read `engine.json` of an engine's directory; raises BundleError that names each wrong key."""
        return read_record(directory / ENGINE_FILE, cls)

    def save(self, directory: Path) -> None:
        """Write `engine.json` into an engine's directory."""
        (directory / ENGINE_FILE).write_text(self.model_dump_json(indent=2) + "\n")


def fingerprint_of(digests: Iterable[str]) -> str:
    """Identifies weights, plan and scales by the SHA-256 of each file of SOURCES, in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()

"""The attention kernels on the GPU against the reference: the cubins and the launcher that engines use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.cuda.attention_spec import ACTIVATION_DTYPES, ActivationDtype
from kvfold.plugins.paged_attention import tolerances
from kvfold.plugins.paged_attention.inputs import Case, Inputs, make_inputs
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.tensorrt.gpu_memory import MARGIN
from tests.gpu.attention_call import call
from tests.gpu.conftest import RecordProperty
from tests.gpu.gpu_attention_cases import DECODE, MQA, PREFILL
from tests.plugins.cpu.paged_attention_node import relative_error
from tests.plugins.cuda.interpreter import expected, shapes_of

ACTIVATION = pytest.mark.parametrize("activation", ACTIVATION_DTYPES)


class Kernels:
    """Calls on one GPU, held against the reference."""

    def __init__(self, device: Device, directory: Path, record: RecordProperty) -> None:
        self.device, self.directory, self.record = device, directory, record

    def call(
        self, inputs: Inputs, activation: ActivationDtype, writes: bool = True, first_page: int = 0
    ) -> list[np.ndarray]:
        """Output, key cache and value cache; skips what the GPU has no type for."""
        if self.device.architecture == 75 and activation == "bfloat16":
            pytest.skip("SM 75 has no bfloat16; would show that its kernels match the reference")
        return call(self.device, self.directory, inputs, activation, writes, first_page)

    def check(
        self, inputs: Inputs, activation: ActivationDtype, writes: bool = True, first_page: int = 0
    ) -> None:
        """Cache bytes are the reference's, and the output is within its tolerance, which is recorded."""
        output, *caches = self.call(inputs, activation, writes, first_page)
        reference, *reference_caches = expected(inputs, activation)
        error, allowed = relative_error(output, reference), tolerances.OUTPUT[activation]
        kernel = "decode" if shapes_of(inputs).decodes else "prefill"
        self.record(f"{kernel} {activation} error", f"{error:.1e} (allowed {allowed:.1e})")
        for cache, reference_cache in zip(caches, reference_caches, strict=True):
            np.testing.assert_array_equal(cache, reference_cache)
        assert error <= allowed


@pytest.fixture
def kernels(device: Device, tmp_path: Path, record_property: RecordProperty) -> Kernels:
    """On this GPU, compiled for its own architecture."""
    return Kernels(device, tmp_path, record_property)


@ACTIVATION
@pytest.mark.parametrize("name", DECODE)
def test_decoding(kernels: Kernels, name: str, activation: ActivationDtype) -> None:
    """One new token of each sequence: cache bytes are exact, the output is within tolerance."""
    case = DECODE[name]
    kernels.check(make_inputs(case), activation, case.writes)


@ACTIVATION
@pytest.mark.parametrize("name", PREFILL)
def test_prefill(kernels: Kernels, name: str, activation: ActivationDtype) -> None:
    """Ragged chunks of prompts: cache bytes are exact, the output is within tolerance."""
    case = PREFILL[name]
    kernels.check(make_inputs(case), activation, case.writes)


@pytest.mark.parametrize("new", [1, 3])
def test_a_pool_of_more_than_2_to_the_31_elements(kernels: Kernels, new: int) -> None:
    """Pages whose offset does not fit into 32 bits are read and written where they are."""
    inputs = make_inputs(replace(MQA, new_lengths=(new,), past_lengths=(200,), head_size=256))
    page = inputs.arrays["key_cache"][0].size
    needed, free = 2 * (2**31 + 100 * page) + MARGIN, kernels.device.free_bytes()
    if free < needed:
        pytest.skip(
            f"needs {needed >> 20} MiB of GPU memory, {free >> 20} are free; would show 64-bit offsets"
        )
    kernels.check(inputs, "float16", first_page=2**31 // page)


@ACTIVATION
@pytest.mark.parametrize("cases", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_a_sequences_bits_do_not_depend_on_its_batch(
    kernels: Kernels, cases: dict[str, Case], activation: ActivationDtype
) -> None:
    """Each sequence alone gives the bits that it gave in a batch."""
    inputs = make_inputs(cases["window"])
    together, *_ = kernels.call(inputs, activation)
    bounds = inputs.arrays["cumulative_sequence_length"]
    decodes = shapes_of(inputs).decodes
    for row in range(len(bounds) - 1):
        one = sequence_of(inputs, row)
        if shapes_of(one).decodes == decodes and shapes_of(one).tokens:  # one token of a chunk would decode
            alone, *_ = kernels.call(one, activation)
            np.testing.assert_array_equal(alone, together[bounds[row] : bounds[row + 1]])


def sequence_of(inputs: Inputs, row: int) -> Inputs:
    """The call with one of its sequences alone."""
    arrays = dict(inputs.arrays)
    start, end = arrays["cumulative_sequence_length"][row : row + 2]
    for name in ("query", "key", "value", "slot_mapping"):
        if name in arrays:
            arrays[name] = arrays[name][start:end]
    for name in ("past_seqlens", "block_table"):
        arrays[name] = arrays[name][row : row + 1]
    arrays["cumulative_sequence_length"] = np.array([0, end - start], np.int32)
    return Inputs(arrays, inputs.attributes)

"""The kernels on the GPU against the references: the cubins and the launches that engines use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.cpu.sampling_calls import NativeRow
from kvfold.plugins.cuda.attention_spec import ACTIVATION_DTYPES, ActivationDtype
from kvfold.plugins.cuda.compile_kernels import compile_library
from kvfold.plugins.cuda.sampling_launches import SAMPLING_VARIANTS
from kvfold.plugins.paged_attention import tolerances
from kvfold.plugins.paged_attention.inputs import Case, Inputs, make_inputs
from kvfold.plugins.sampling import tolerances as sampling_tolerances
from kvfold.plugins.sampling.inputs import Case as SamplingCase
from kvfold.plugins.sampling.inputs import make_inputs as make_sampling_inputs
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_sampler import DeviceRows, DeviceSampler
from kvfold.runtime.engine.cuda.memory_check import MARGIN
from kvfold.runtime.engine.protocol import drawn_id
from tests.gpu.attention_call import call
from tests.gpu.conftest import RecordProperty
from tests.gpu.gpu_attention_cases import DECODE, MQA, PREFILL
from tests.plugins.cpu.paged_attention_node import relative_error
from tests.plugins.cuda.interpreter import expected, shapes_of
from tests.plugins.sampling_cases import check_row

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


SAMPLED = {
    "greedy": SamplingCase(vocab=151_936, rows=64, likely=5),
    "temperature": SamplingCase(vocab=49_152, rows=64, temperature=1.0, likely=0),
    "nucleus": SamplingCase(vocab=49_152, rows=64, temperature=0.8, top_p=0.95, min_p=0.01),
    "flat nucleus": SamplingCase(vocab=49_152, rows=16, spread=0.3, temperature=1.2, top_p=0.9),
    "likeliest": SamplingCase(vocab=151_936, rows=16, temperature=0.7, top_k=40, top_p=0.9, likely=20),
    "edited": SamplingCase(
        vocab=9_000, rows=16, levels=2, allowed=0.5, biased=20, seen=300, banned=3, temperature=1.0,
        top_k=300, repetition_penalty=1.3, frequency_penalty=1.5, presence_penalty=0.7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_tokens_are_the_reference_s(device: Device, tmp_path: Path, name: str) -> None:
    """Tokens of the sampling kernels are the reference's, and log probabilities within its tolerance."""
    inputs = make_sampling_inputs(SAMPLED[name])
    compile_library(SAMPLING_VARIANTS.values(), (device.architecture,), tmp_path)
    sampler = DeviceSampler(device, tmp_path, len(inputs.rows), inputs.logits.shape[1])
    pinned, address = device.allocate_pinned(inputs.logits.nbytes), device.allocate(inputs.logits.nbytes)
    pinned[:] = inputs.logits.view(np.uint8).reshape(-1)
    device.upload(address, pinned)
    batch = sampler.batch([NativeRow(row) for row in inputs.rows])
    rows = DeviceRows(address, tuple(range(len(inputs.rows))))
    for _ in range(2):  # with the tables brought up, then with those that are there
        batch.begin(rows)
        assert batch.finish() == 0
        for at, row in enumerate(inputs.rows):
            check_row(batch.results, at, inputs.logits[at], row, sampling_tolerances.OUTPUT)
    named = device.allocate_pinned(8 * 300).view(np.int64)
    named[:] = np.arange(300)
    named[7], named[299] = drawn_id(3), drawn_id(0)
    ids = device.allocate(named.nbytes)
    device.upload(ids, named)
    sampler.feed(ids, len(named))
    device.download(named, ids)
    device.synchronize()
    assert named[[7, 299]].tolist() == batch.results.tokens[[3, 0]].tolist()
    assert named[:7].tolist() == list(range(7)) and named[298] == 298

"""The CPU kernel of PagedAttention against the reference, on every instruction set of this machine."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfold.plugins.paged_attention import tolerances
from kvfold.plugins.paged_attention.inputs import Case, Inputs, make_inputs
from kvfold.plugins.paged_attention.schema import OUTPUTS
from tests.plugins.attention_cases import cases
from tests.plugins.cpu.paged_attention_node import CACHES, expected, node_of, relative_error, run, session_of

PROPERTY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# Ragged batches; a few sequences cross the kernel's key splits.
LENGTHS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0, 1, 15, 16, 63, 250, 300])), max_size=4)
CASES = cases(LENGTHS, [(1, 1), (1, 9), (2, 2), (3, 3), (3, 1)], [8, 10, 64, 64, 80, 96, 128, 256])


@PROPERTY
@given(case=CASES)
def test_parity(isa: str, case: Case) -> None:
    inputs = make_inputs(case)
    output, *caches = run(inputs)
    reference, *reference_caches = expected(inputs)
    for cache, reference_cache in zip(caches, reference_caches, strict=True):
        np.testing.assert_array_equal(cache, reference_cache)
    limit = tolerances.OUTPUT["int8" if case.int8_cache else "float32"]
    assert relative_error(output, reference) <= limit


@pytest.mark.parametrize("int8_cache", [False, True])
def test_long_context(isa: str, int8_cache: bool) -> None:
    case = Case((1, 3), (1500, 700), num_heads=9, kv_num_heads=3, int8_cache=int8_cache)
    inputs = make_inputs(case)
    limit = tolerances.OUTPUT["int8" if int8_cache else "float32"]
    assert relative_error(run(inputs)[0], expected(inputs)[0]) <= limit


def test_outlier_channels_of_an_int8_cache(isa: str) -> None:
    """Folding k_scale into the query must not drown small channels beside one a hundred times larger."""
    inputs = make_inputs(Case((4,), (400,), int8_cache=True, seed=3))
    inputs.arrays["k_scale"][:, :, 5] *= 100
    inputs.arrays["query"][:, 5 : 4 * 64 : 64] /= 100
    inputs.arrays["query"][:, 4 * 64 + 5 : 6 * 64 : 64] *= 100
    assert relative_error(run(inputs)[0], expected(inputs)[0]) <= tolerances.OUTPUT["int8"]


def test_quantisation_clamps_and_rounds_half_to_even(isa: str) -> None:
    inputs = make_inputs(Case((8,), (0,), num_heads=2, kv_num_heads=2, int8_cache=True, packed=False))
    for name in ("k_scale", "v_scale"):
        inputs.arrays[name][...] = 0.25
    halves = (np.arange(8 * 128, dtype=np.float32).reshape(8, 128) - 512) * 0.125
    inputs.arrays["value"] = halves
    np.testing.assert_array_equal(run(inputs)[2], expected(inputs)[2])


@pytest.mark.parametrize("int8_cache", [False, True])
def test_unmapped_pages_are_masked_and_never_read(isa: str, int8_cache: bool) -> None:
    """A hole in the table is no key, whatever the pool holds; floats there may even be NaN."""
    inputs = make_inputs(Case((3,), (600,), int8_cache=int8_cache, spare_pages=3))
    inputs.arrays["block_table"][0, 5:9] = -1
    if not int8_cache:
        used = set(inputs.arrays["block_table"].ravel().tolist())
        for page in set(range(len(inputs.arrays["key_cache"]))) - used:
            inputs.arrays["key_cache"][page] = np.nan
            inputs.arrays["value_cache"][page] = np.nan
    limit = tolerances.OUTPUT["int8" if int8_cache else "float32"]
    assert relative_error(run(inputs)[0], expected(inputs)[0]) <= limit


@pytest.mark.parametrize("head_sink", [False, True])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_a_query_that_sees_no_key_gives_zeros(isa: str, int8_cache: bool, head_sink: bool) -> None:
    case = Case((3, 2), (20, 300), int8_cache=int8_cache, head_sink=head_sink, writes=False)
    inputs = make_inputs(case)
    inputs.arrays["block_table"][0] = -1
    output, reference = run(inputs)[0], expected(inputs)[0]
    assert not output[:3].any() and not reference[:3].any()
    assert relative_error(output, reference) <= tolerances.OUTPUT["int8" if int8_cache else "float32"]


def part(inputs: Inputs, caches: list[np.ndarray], begin: int, end: int) -> Inputs:
    """Tokens [begin, end) of a single sequence that starts empty, over the given caches."""
    arrays = dict(inputs.arrays)
    for name in ("query", "key", "value", "slot_mapping"):
        if name in arrays:
            arrays[name] = arrays[name][begin:end]
    arrays["cumulative_sequence_length"] = np.asarray([0, end - begin], dtype=np.int32)
    arrays["past_seqlens"] = np.asarray([begin], dtype=np.int32)
    arrays["key_cache"], arrays["value_cache"] = caches
    return Inputs(arrays, inputs.attributes)


@pytest.mark.parametrize("int8_cache", [False, True])
@pytest.mark.parametrize("window", [-1, 90])
def test_steps_do_not_show_in_the_bits(isa: str, int8_cache: bool, window: int) -> None:
    """Law: prefill at once, in chunks, and token by token give identical bits."""
    case = Case((530,), (0,), 6, 2, 64, 16, window, 4, int8_cache=int8_cache, qk_norm=True, freed=False)
    inputs = make_inputs(case)
    whole, *whole_caches = run(inputs)
    cuts = [0, 1, 7, 64, 200, 255, 256, 257, 500, *range(521, 531)]
    caches = [inputs.arrays["key_cache"], inputs.arrays["value_cache"]]
    outputs = []
    for begin, end in pairwise(cuts):
        output, *caches = run(part(inputs, caches, begin, end))
        outputs.append(output)
    np.testing.assert_array_equal(np.concatenate(outputs), whole)
    for cache, whole_cache in zip(caches, whole_caches, strict=True):
        np.testing.assert_array_equal(cache, whole_cache)


@PROPERTY
@given(case=CASES, threads=st.sampled_from([1, 3]))
def test_neighbours_and_threads_do_not_show_in_the_bits(isa: str, case: Case, threads: int) -> None:
    """Law: a sequence alone, on any number of threads, gives the bits it gives in a batch."""
    inputs = make_inputs(case)
    together = run(inputs)[0]
    starts = inputs.arrays["cumulative_sequence_length"]
    for row, (begin, end) in enumerate(pairwise(starts)):
        arrays = dict(inputs.arrays)
        for name in ("query", "key", "value", "slot_mapping"):
            if name in arrays:
                arrays[name] = arrays[name][begin:end]
        arrays["cumulative_sequence_length"] = np.asarray([0, end - begin], dtype=np.int32)
        for name in ("past_seqlens", "block_table"):
            arrays[name] = arrays[name][row : row + 1]
        alone = run(Inputs(arrays, inputs.attributes), threads)[0]
        np.testing.assert_array_equal(alone, together[begin:end])


def test_caches_are_updated_in_place() -> None:
    """Two chained nodes, a producer and a consumer, share one bound buffer without a copy."""
    inputs = make_inputs(Case((5, 1), (20, 3), int8_cache=True))
    producer = node_of(inputs)
    consumer = node_of(inputs, ("second",))
    consumer.input[3], consumer.input[4], consumer.input[10] = "key_cache_out", "value_cache_out", "skip"
    inputs.arrays["skip"] = np.full_like(inputs.arrays["slot_mapping"], -1)
    session = session_of(inputs, [producer, consumer])
    binding = session.io_binding()
    caches = {}
    for name, array in inputs.arrays.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
        if name in ("key_cache", "value_cache"):
            caches[f"{name}_out"] = value
            binding.bind_ortvalue_output(f"{name}_out", value)
    for name in (OUTPUTS[0], "second"):
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    bound = dict(zip([*CACHES, OUTPUTS[0], "second"], binding.get_outputs(), strict=True))
    reference = expected(make_inputs(Case((5, 1), (20, 3), int8_cache=True)))
    for name, array in zip(CACHES, reference[1:], strict=True):
        assert bound[name].data_ptr() == caches[name].data_ptr()
        np.testing.assert_array_equal(caches[name].numpy(), array)
    np.testing.assert_array_equal(bound["second"].numpy(), bound[OUTPUTS[0]].numpy())


BAD: dict[str, tuple[str, object, str]] = {
    "page": ("block_table", 999, "block_table holds page 999"),
    "slot": ("slot_mapping", 9999, "slot_mapping\\[0\\] is 9999"),
    "past": ("past_seqlens", -1, "past_seqlens is -1"),
    "far": ("past_seqlens", 5000, "cos_cache covers"),
    "starts": ("cumulative_sequence_length", 3, "cumulative_sequence_length must run from 0 to T"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused(name: str) -> None:
    array, value, message = BAD[name]
    inputs = make_inputs(Case((2,), (20,)))
    inputs.arrays[array].flat[0] = value
    with pytest.raises(Exception, match=message):
        run(inputs)


def test_wrong_shapes_are_refused() -> None:
    good = make_inputs(Case((2,), (20,), int8_cache=True, head_sink=True))
    for name, array, message in (
        ("query", good.arrays["query"][:, :-1], "query .packed, as key is absent. has shape"),
        ("block_table", good.arrays["block_table"][:, :1], "block_table has 1 columns"),
        ("k_scale", good.arrays["k_scale"][:, :, :-2], "k_scale has shape"),
        ("head_sink", good.arrays["head_sink"][:-1], "head_sink has shape"),
        ("slot_mapping", good.arrays["slot_mapping"][:-1], "slot_mapping has shape"),
    ):
        bad = Inputs({**good.arrays, name: np.ascontiguousarray(array)}, good.attributes)
        with pytest.raises(Exception, match=message):
            run(bad)


@pytest.mark.parametrize("name", ["q_norm_weight", "k_norm_weight"])
def test_one_norm_weight_alone_is_refused(name: str) -> None:
    inputs = make_inputs(Case((2,), (20,), qk_norm=True))
    del inputs.arrays[name]
    message = "q_norm_weight and k_norm_weight must both be present or both be absent"
    with pytest.raises(Exception, match=message):
        run(inputs)
    with pytest.raises(ValueError, match=message):
        expected(inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "num_heads is 5, not a multiple"),
        ({"local_window_size": 0}, "local_window_size is 0"),
        ({"rotary_interleaved": 1}, "rotary_interleaved is 1"),
        ({"k_quant_type": "PER_TENSOR"}, "k_quant_type is PER_TENSOR"),
    ],
)
def test_bad_attributes_are_refused(change: dict[str, Any], message: str) -> None:
    inputs = make_inputs(Case((2,), (20,)))
    attributes = replace(inputs.attributes, **change)
    with pytest.raises(Exception, match=message):
        run(Inputs(inputs.arrays, attributes))


def test_writing_without_cache_outputs_is_refused() -> None:
    inputs = make_inputs(Case((2,), (20,)))
    session = session_of(inputs, [node_of(inputs, (OUTPUTS[0],))])
    with pytest.raises(Exception, match="key_cache_out or value_cache_out is absent"):
        session.run(None, {**inputs.arrays})

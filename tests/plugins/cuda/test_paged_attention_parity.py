"""The GPU kernels of PagedAttention against the reference, under Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.plugins.cuda.attention_spec import ACTIVATION_DTYPES, HEAD_SIZES, ActivationDtype
from kvfold.plugins.cuda.launches import kernels_for
from kvfold.plugins.paged_attention import tolerances
from kvfold.plugins.paged_attention.inputs import Case, Inputs, make_inputs
from tests.plugins.attention_cases import cases
from tests.plugins.cpu.paged_attention_node import relative_error
from tests.plugins.cuda.interpreter import Tiles, expected, run, shapes_of

PROPERTY = settings(max_examples=40, deadline=None)
TILES = (Tiles(), Tiles(rows=16, keys=16, split_keys=32), Tiles(rows=64, keys=64), Tiles(int8_dot=0))
ACTIVATION = pytest.mark.parametrize("activation", ACTIVATION_DTYPES)
INT8_CACHE = pytest.mark.parametrize("int8_cache", [False, True])
DECODES = pytest.mark.parametrize("decodes", [False, True])


HEADS = [(1, 1), (1, 9), (2, 1), (2, 2), (1, 3)]
PAST = st.sampled_from([0, 1, 15, 16, 63, 150])
# As many tokens as sequences means decoding, so ragged batches have more or fewer.
RAGGED = st.lists(st.tuples(st.sampled_from([0, 1, 2, 5, 11]), PAST), max_size=3).filter(
    lambda sequences: sum(new for new, _ in sequences) != len(sequences)
)
ONE_TOKEN_EACH = st.lists(st.tuples(st.just(1), PAST | st.just(300)), min_size=1, max_size=4)


def check(
    inputs: Inputs, activation: ActivationDtype, writes: bool = True, tiles: Tiles | None = None
) -> list[np.ndarray]:
    """Hold one call against the reference; returns what the kernels gave."""
    output, *caches = run(inputs, activation, writes, tiles)
    reference, *reference_caches = expected(inputs, activation)
    for cache, reference_cache in zip(caches, reference_caches, strict=True):
        np.testing.assert_array_equal(cache, reference_cache)
    assert relative_error(output, reference) <= tolerances.OUTPUT[activation]
    return [output, *caches]


@PROPERTY
@given(
    case=cases(RAGGED, HEADS, list(HEAD_SIZES)),
    activation=st.sampled_from(ACTIVATION_DTYPES),
    tiles=st.sampled_from(TILES),
)
def test_prefill_parity(case: Case, activation: ActivationDtype, tiles: Tiles) -> None:
    check(make_inputs(case), activation, case.writes, tiles)


@PROPERTY
@given(
    case=cases(ONE_TOKEN_EACH, HEADS, list(HEAD_SIZES)),
    activation=st.sampled_from(ACTIVATION_DTYPES),
    tiles=st.sampled_from(TILES),
)
def test_decode_parity(case: Case, activation: ActivationDtype, tiles: Tiles) -> None:
    check(make_inputs(case), activation, case.writes, tiles)


@DECODES
@INT8_CACHE
@pytest.mark.parametrize("head_size", [72, 80, 112, 192, 248])
def test_heads_between_powers_of_two(head_size: int, int8_cache: bool, decodes: bool) -> None:
    """Of families such as Phi 2 and StableLM; padded channels count for nothing, and are not written."""
    case = Case((1 if decodes else 5, 1), (70, 9), 6, 2, head_size, 16, 40, 4, int8_cache=int8_cache)
    check(make_inputs(replace(case, qk_norm=True, head_sink=True, packed=True)), "float16")


@ACTIVATION
@INT8_CACHE
@pytest.mark.parametrize(("window", "sinks"), [(-1, 0), (200, 0), (200, 70)])
def test_long_context(activation: ActivationDtype, int8_cache: bool, window: int, sinks: int) -> None:
    """Two dozen splits without a window; with one, a few splits that begin anywhere, and those of sinks."""
    case = Case((1, 1, 1), (1500, 63, 1023), 9, 3, 64, 32, window, sinks, int8_cache=int8_cache)
    check(make_inputs(case), activation, tiles=Tiles(keys=64))


@ACTIVATION
def test_prefill_behind_a_long_context(activation: ActivationDtype) -> None:
    case = Case((5, 2), (1500, 700), 9, 3, 64, 16, 300, 20, int8_cache=True)
    check(make_inputs(case), activation, tiles=Tiles(rows=16, keys=64))


@DECODES
@pytest.mark.parametrize("tiles", [Tiles(), Tiles(int8_dot=0)])
def test_outlier_channels_of_an_int8_cache(decodes: bool, tiles: Tiles) -> None:
    """Folding k_scale into the query must not drown small channels beside one a hundred times larger.

    Without RoPE, which would mix the outlier's query with another before it is rounded to float16.
    """
    inputs = make_inputs(Case((1 if decodes else 4,), (400,), int8_cache=True, seed=3))
    inputs = Inputs(inputs.arrays, replace(inputs.attributes, do_rotary=0))
    inputs.arrays["k_scale"][:, :, 5] *= 100
    inputs.arrays["query"][:, 5 : 4 * 64 : 64] /= 100
    inputs.arrays["query"][:, 4 * 64 + 5 : 6 * 64 : 64] *= 100
    check(inputs, "float16", tiles=tiles)


def test_scales_of_any_magnitude() -> None:
    """Folded into the query they may leave the range of float16."""
    for magnitude in (1e-4, 1e4):
        inputs = make_inputs(Case((3,), (40,), int8_cache=True))
        inputs.arrays["k_scale"] *= magnitude
        check(Inputs(inputs.arrays, replace(inputs.attributes, scale=0.125 / magnitude)), "float16")


@ACTIVATION
def test_quantisation_clamps_and_rounds_half_to_even(activation: ActivationDtype) -> None:
    inputs = make_inputs(Case((2,), (0,), num_heads=1, kv_num_heads=1, int8_cache=True, packed=False))
    inputs.arrays["v_scale"][...] = 0.25
    inputs.arrays["value"] = (np.arange(128, dtype=np.float32).reshape(2, 64) - 64) * 0.625
    halves = inputs.arrays["value"] / 0.25 % 1 == 0.5
    assert halves.any() and np.abs(inputs.arrays["value"]).max() / 0.25 > 128
    check(inputs, activation)


@INT8_CACHE
def test_tokens_without_a_slot_are_not_written(int8_cache: bool) -> None:
    """The interpreter's run fails if a byte before the pool changes."""
    inputs = make_inputs(Case((5,), (20,), int8_cache=int8_cache))
    inputs.arrays["slot_mapping"][[0, 3]] = -1
    check(inputs, "float16")


@DECODES
@INT8_CACHE
def test_unmapped_pages_are_masked_and_never_read(int8_cache: bool, decodes: bool) -> None:
    """A hole in the table is no key, and neither is what lies past a sequence's end; both may be NaN."""
    inputs = make_inputs(Case((1 if decodes else 3,), (200,), int8_cache=int8_cache, spare_pages=3))
    table = inputs.arrays["block_table"]
    last = inputs.arrays["slot_mapping"][-1]
    table[0, 5:9] = -1
    if not int8_cache:
        for cache in (inputs.arrays["key_cache"], inputs.arrays["value_cache"]):
            cache[np.setdiff1d(np.arange(len(cache)), table)] = np.nan
            cache[last // 16, last % 16 + 1 :] = np.nan
    check(inputs, "float16")


@DECODES
def test_pages_outside_of_window_and_sinks_are_never_read(decodes: bool) -> None:
    """They may still be mapped; a copy of the inputs has NaN there."""
    new = 1 if decodes else 3
    case = Case((new,), (300,), local_window_size=50, sink_size=20, freed=False)
    inputs = make_inputs(case)
    poisoned = {name: array.copy() for name, array in inputs.arrays.items()}
    for cache in (poisoned["key_cache"], poisoned["value_cache"]):
        cache[poisoned["block_table"][0, 2 : (300 - 50 + 1) // 16]] = np.nan
    output, *_ = run(Inputs(poisoned, inputs.attributes), "float16")
    assert relative_error(output, expected(inputs, "float16")[0]) <= tolerances.OUTPUT["float16"]


@DECODES
def test_pools_of_more_than_2_to_the_31_elements(decodes: bool) -> None:
    """Offsets into the pool have 64 bits; memory that nobody touches is never committed."""
    inputs = make_inputs(Case((1 if decodes else 3,), (20,), head_size=256, int8_cache=True))
    first_page = 2**31 // inputs.arrays["key_cache"][0].size
    output, *caches = run(inputs, "float16", first_page=first_page)
    reference, *reference_caches = expected(inputs, "float16")
    for cache, reference_cache in zip(caches, reference_caches, strict=True):
        np.testing.assert_array_equal(cache, reference_cache)
    assert relative_error(output, reference) <= tolerances.OUTPUT["float16"]


@DECODES
@pytest.mark.parametrize("head_sink", [False, True])
@INT8_CACHE
def test_a_query_that_sees_no_key_gives_zeros(int8_cache: bool, head_sink: bool, decodes: bool) -> None:
    new = (1, 1) if decodes else (3, 2)
    inputs = make_inputs(Case(new, (20, 100), int8_cache=int8_cache, head_sink=head_sink, writes=False))
    inputs.arrays["block_table"][0] = -1
    output, *_ = check(inputs, "float16", writes=False)
    assert not output[: new[0]].any()


def test_an_empty_step_gives_an_empty_output() -> None:
    inputs = make_inputs(Case((0, 0), (5, 7)))
    assert kernels_for(shapes_of(inputs)) == ("append", "prefill")
    output, *_ = check(inputs, "float16")
    assert output.shape == (0, 4 * 64)

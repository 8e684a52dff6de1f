"""The op for ONNX Runtime's CUDA provider against the reference, from an ONNX node to a kernel's arithmetic.

See `onnxruntime_op` for what runs in the GPU's place, and so what this does not show.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfold.plugins.cuda.attention_spec import ACTIVATION_DTYPES, HEAD_SIZES, ActivationDtype
from kvfold.plugins.cuda.calls import resolve
from kvfold.plugins.cuda.cuda_library import library_path
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.launches import WORKSPACE
from kvfold.plugins.paged_attention import tolerances
from kvfold.plugins.paged_attention.inputs import Case, Inputs, make_inputs
from kvfold.plugins.paged_attention.schema import OUTPUTS
from tests.plugins.attention_cases import cases
from tests.plugins.cpu.paged_attention_node import relative_error
from tests.plugins.cuda.interpreter import expected, interpret, shapes_of, spec_of
from tests.plugins.cuda.onnxruntime.host_gpu import ARCHITECTURE, Launched
from tests.plugins.cuda.onnxruntime.onnxruntime_op import PRODUCERS_OWN, Call, Libraries, run

PROPERTY = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HEADS = [(1, 1), (1, 9), (2, 1), (2, 2), (1, 3)]
PAST = st.sampled_from([0, 1, 15, 16, 63, 150])
SEQUENCES = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 5, 11]), PAST), min_size=1, max_size=3)
PREFILL = Case((3, 2), (20, 5), int8_cache=True, local_window_size=16, sink_size=4)
DECODE = Case((1, 1), (20, 100), int8_cache=True, head_sink=True)


def call(libraries: Libraries, node: Call) -> tuple[list[np.ndarray], list[Launched]]:
    with TemporaryDirectory() as folder:
        results: tuple[list[np.ndarray], list[Launched]] = interpret(run, libraries, Path(folder), node)
        return results


def check(libraries: Libraries, node: Call) -> None:
    (output, *caches), _ = call(libraries, node)
    reference, *reference_caches = expected(node.inputs, node.activation)
    for cache, reference_cache in zip(caches, reference_caches, strict=True):
        np.testing.assert_array_equal(cache, reference_cache)
    assert relative_error(output, reference) <= tolerances.OUTPUT[node.activation]


@PROPERTY
@given(case=cases(SEQUENCES, HEADS, list(HEAD_SIZES)), activation=st.sampled_from(ACTIVATION_DTYPES))
def test_parity(libraries: Libraries, case: Case, activation: ActivationDtype) -> None:
    check(libraries, Call(make_inputs(case), activation, case.writes))


@pytest.mark.parametrize("case", [PREFILL, DECODE])
def test_consumers_read_what_the_producer_wrote_and_scratch_is_given_back(
    libraries: Libraries, case: Case
) -> None:
    (output, *followers, _, _), launches = call(libraries, Call(make_inputs(case), followers=4))
    assert len(followers) == 4
    for each in followers:
        np.testing.assert_array_equal(each, output)
    scratch = [each.arguments[WORKSPACE[0]] for each in launches if each.variant.startswith("append")]
    assert len(scratch) == 5
    assert len(set(scratch)) == 2  # a node's, and that of the node before


@pytest.mark.parametrize("case", [PREFILL, DECODE, replace(DECODE, packed=False)])
@pytest.mark.parametrize("writes", [True, False])
def test_launches_are_those_of_the_reference_of_calls(
    libraries: Libraries, case: Case, writes: bool, tmp_path: Path
) -> None:
    inputs = make_inputs(case)
    _, launches = interpret(run, libraries, tmp_path, Call(inputs, writes=writes))
    given = {name: value for each in launches for name, value in each.arguments.items()}
    names = [name for name in inputs.arrays if writes or name not in PRODUCERS_OWN]
    buffers = {name: int(given[name]) for name in (*names, "output") if name in given}
    if not launches[-1].variant.startswith("prefill"):
        buffers["cumulative_sequence_length"] = int(given["cumulative_sequence_length"])
    resolved = resolve(
        KernelLibrary.load(tmp_path),
        ARCHITECTURE,
        spec_of(inputs, "float16", writes),
        shapes_of(inputs),
        buffers,
        int(given[WORKSPACE[0]]),
    )
    assert [(each.kernel.variant, each.grid) for each in resolved] == [
        (each.variant, each.grid) for each in launches
    ]
    for ours, theirs in zip(resolved, launches, strict=True):
        values = [np.float32(value) if kind == "float32" else value for kind, value in ours.arguments]
        assert values == list(theirs.arguments.values())


def without(name: str) -> Inputs:
    inputs = make_inputs(PREFILL)
    return replace(inputs, arrays={key: array for key, array in inputs.arrays.items() if key != name})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Call(make_inputs(PREFILL), changed={"num_heads": None}), "attribute num_heads is missing"),
        (
            Call(make_inputs(PREFILL), changed={"local_window_size": 0}),
            "local_window_size is 0, and must be -1",
        ),
        (Call(make_inputs(PREFILL), changed={"k_quant_type": "NONE"}), "k_quant_type NONE and v_quant_type"),
        (Call(without("v_scale")), "attribute inputs lacks v_scale"),
        (Call(make_inputs(replace(PREFILL, head_size=32))), "head size 32 has no kernel; there are 64 to"),
        (
            Call(make_inputs(PREFILL), changed={"kernels": "f" * 64}),
            "the engine was built with kernels ffffffffffff, and open are .*; open the file kernels.bin",
        ),
        (
            Call(make_inputs(PREFILL), in_place=False),
            "attention node attention.0: key_cache_out is not where its input is; caches are",
        ),
        (
            Call(make_inputs(PREFILL), outputs=OUTPUTS),
            "has no fourth output for its scratch; build the engine",
        ),
    ],
)
def test_what_breaks_the_contract_is_said(libraries: Libraries, node: Call, message: str) -> None:
    with pytest.raises(Exception, match="PagedAttention: ") as caught:
        call(libraries, node)
    assert re.search(message, str(caught.value))


def test_inputs_of_other_shapes_are_refused(libraries: Libraries) -> None:
    changes: dict[str, Any] = {
        "k_scale": lambda array: array.reshape(-1),
        "slot_mapping": lambda array: array[1:],
        "block_table": lambda array: array[1:],
        "sin_cache": lambda array: array[:, 1:],
    }
    for name, change in changes.items():
        inputs = make_inputs(PREFILL)
        inputs.arrays[name] = np.ascontiguousarray(change(inputs.arrays[name]))
        with pytest.raises(Exception, match=rf"{name} has shape .*, and must have "):
            call(libraries, Call(inputs))


def test_the_shipped_library_is_registered_for_the_cuda_provider(libraries: Libraries) -> None:
    """ONNX Runtime knows the op and has no kernel of the CPU provider's for it."""
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*PagedAttention"):
        call(replace(libraries, op=library_path()), Call(make_inputs(PREFILL)))

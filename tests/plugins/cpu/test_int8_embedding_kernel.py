"""The CPU kernel of Int8Embedding against the reference; what it reads is a table as Int8Linear packs it."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kvfold.plugins.cpu import cpu_library as library
from kvfold.plugins.int8_embedding import reference, schema, tolerances
from kvfold.plugins.int8_embedding.inputs import Case, Inputs, make_inputs
from kvfold.plugins.int8_linear.packing import pack_weight, quantize_weight


def session(
    inputs: Inputs, threads: int = 2, rows: int | None = None, shared_memory: bool = False
) -> onnxruntime.InferenceSession:
    """An engine of one node over ids [T]; the table may be said to have other `rows` than it has.

    Memory is its own, or what sessions that ask for it share.
    """
    packed = pack_weight(inputs.weight)
    constants = {"weight": packed.weight, "weight_scale": packed.weight_scale}
    node = helper.make_node(
        schema.OP_TYPE,
        [*schema.INPUTS],
        [*schema.OUTPUTS],
        domain=schema.DOMAIN,
        rows=rows or inputs.weight.shape[0],
        columns=inputs.weight.shape[1],
    )
    graph = helper.make_graph(
        [node],
        "int8_embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["T"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", inputs.weight.shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(schema.DOMAIN, schema.OPSET)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", str(int(shared_memory)))
    library.register_ops(options)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(engine: onnxruntime.InferenceSession, ids: np.ndarray) -> np.ndarray:
    """y [T, columns] of ids [T]."""
    (y,) = engine.run(None, {"ids": ids})
    return np.asarray(y)


def expected(inputs: Inputs) -> np.ndarray:
    """The reference's y."""
    weight, scale = (torch.from_numpy(array) for array in quantize_weight(inputs.weight))
    return reference.int8_embedding(torch.from_numpy(inputs.ids), weight, scale).numpy()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.builds(
        Case,
        tokens=st.integers(0, 20),
        rows=st.integers(1, 90),
        columns=st.integers(1, 70),
        seed=st.integers(0, 2**32),
    )
)
def test_matches_the_reference(isa: str, case: Case) -> None:
    """Sizes around blocks of 16 rows x 4 columns."""
    inputs = make_inputs(case)
    np.testing.assert_allclose(
        run(session(inputs), inputs.ids), expected(inputs), rtol=0, atol=tolerances.OUTPUT
    )


@pytest.mark.parametrize("threads", [1, 4])
def test_many_tokens_on_any_number_of_threads(threads: int) -> None:
    inputs = make_inputs(Case(tokens=300, rows=50, columns=576))
    np.testing.assert_array_equal(run(session(inputs, threads), inputs.ids), expected(inputs))


@pytest.mark.parametrize("wrong", [-1, 50, 2**40])
def test_a_token_beyond_the_table_is_refused_by_value(wrong: int) -> None:
    engine = session(make_inputs(Case(tokens=4, rows=50, columns=8)))
    with pytest.raises(Exception, match=f"ids holds {wrong}, the table has 50 rows"):
        run(engine, np.array([3, wrong]))


def test_a_table_of_another_size_is_refused() -> None:
    engine = session(make_inputs(Case(tokens=4, rows=50, columns=8)), rows=70)
    with pytest.raises(Exception, match=r"weight has shape \[4, 2, 16, 4\], expected \[5, 2, 16, 4\]"):
        run(engine, np.array([3]))


def test_what_onnxruntime_refuses_an_op_is_said_in_its_own_words() -> None:
    """By them an engine tells that memory ran out."""
    arena = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", arena, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": 1 << 20}))
    engine = session(make_inputs(Case(tokens=4, rows=50, columns=1024)), shared_memory=True)
    assert run(engine, np.array([3])).shape == (1, 1024)
    words = r"Int8Embedding: .* refused KernelContext_GetOutput: .*is smaller than requested bytes"
    with pytest.raises(Exception, match=words):
        run(engine, np.zeros(1000, np.int64))

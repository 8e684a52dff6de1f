"""The CPU kernel of Int4Linear against the reference, on every instruction set this machine has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kvfold.plugins.cpu import cpu_library as library
from kvfold.plugins.int4_linear import reference, schema, tolerances
from kvfold.plugins.int4_linear.inputs import Case, Inputs, make_inputs
from kvfold.plugins.int4_linear.packing import (
    BlockWeight,
    dequantize_weight,
    pack_weight,
    quantize_weight,
)
from kvfold.plugins.int4_linear.reference import quantize_blocks
from kvfold.plugins.int8_linear.reference import activate
from kvfold.plugins.int8_linear.schema import ActivationBits, InputActivation


def session(
    inputs: Inputs, activation: InputActivation = "none", threads: int = 2, bits: ActivationBits = 8
) -> onnxruntime.InferenceSession:
    """An engine of one Int4Linear node over x [T, K]."""
    packed = pack_weight(inputs.weight)
    constants = {
        "weight": packed.weight,
        "weight_scale": packed.weight_scale,
        "weight_minimum": packed.weight_minimum,
        "bias": inputs.bias,
    }
    out_features, in_features = inputs.weight.codes.shape
    node = helper.make_node(
        schema.OP_TYPE,
        ["x", *(name if array is not None else "" for name, array in constants.items())],
        ["y"],
        domain=schema.DOMAIN,
        in_features=in_features,
        out_features=out_features,
        input_activation=activation,
        activation_bits=bits,
    )
    graph = helper.make_graph(
        [node],
        "int4_linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", out_features])],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if array is not None],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(schema.DOMAIN, schema.OPSET)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    library.register_ops(options)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(engine: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
    """y [T, N] of x [T, K]."""
    (y,) = engine.run(None, {"x": x})
    return np.asarray(y)


def expected(inputs: Inputs, activation: InputActivation = "none", bits: ActivationBits = 8) -> np.ndarray:
    """The reference's y."""
    weight = inputs.weight
    arrays = (inputs.x, weight.codes, weight.scale, weight.minimum, inputs.bias)
    x, codes, scale, minimum, bias = (None if a is None else torch.from_numpy(a) for a in arrays)
    assert x is not None and codes is not None and scale is not None
    return reference.int4_linear(x, codes, scale, minimum, bias, activation, bits).numpy()


@st.composite
def cases(draw: st.DrawFn, activation: InputActivation = "none") -> Case:
    """Sizes around the kernels' tiles: pairs of rows, blocks of 32 inputs, columns of 8 to 32 outputs."""
    tokens = draw(st.integers(0, 9))
    return Case(
        tokens=tokens,
        in_features=draw(st.integers(1, 130)),
        out_features=draw(st.integers(1, 100)),
        minimum=draw(st.booleans()),
        bias=draw(st.booleans()),
        zero_row=tokens > 0 and draw(st.booleans()),
        input_activation=activation,
        seed=draw(st.integers(0, 2**32)),
    )


GATED = pytest.mark.parametrize("activation", ["swiglu", "geglu"])
PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@PROPERTY
@given(case=cases())
def test_matches_the_reference(isa: str, case: Case) -> None:
    """Every size, symmetric and with minima, with and without bias."""
    inputs = make_inputs(case)
    np.testing.assert_allclose(
        run(session(inputs), inputs.x), expected(inputs), rtol=0, atol=tolerances.OUTPUT
    )


@PROPERTY
@given(case=cases())
def test_finer_activations_match_the_reference(isa: str, case: Case) -> None:
    """16-bit activations: two planes, still the reference's bits."""
    inputs = make_inputs(case)
    np.testing.assert_allclose(
        run(session(inputs, bits=16), inputs.x), expected(inputs, bits=16), rtol=0, atol=tolerances.OUTPUT
    )


@PROPERTY
@given(case=cases("swiglu") | cases("geglu"))
def test_a_fused_activation_matches_the_reference(isa: str, case: Case) -> None:
    """Up to a rounding tie that falls the other way: a step of the largest weight."""
    inputs, activation = make_inputs(case), case.input_activation
    y, wanted = run(session(inputs, activation), inputs.x), expected(inputs, activation)
    token_scale = quantize_blocks(activate(torch.from_numpy(inputs.x), activation))[2].numpy()
    step = token_scale * np.abs(dequantize_weight(inputs.weight)).max(1)
    rounding = 1e-6 * np.abs(dequantize_weight(inputs.weight)).sum(1) * token_scale * 127
    assert y.shape == wanted.shape
    assert (np.abs(y - wanted) <= tolerances.SWIGLU_STEPS * step + rounding).all()


@GATED
def test_ties_are_rare(isa: str, activation: InputActivation) -> None:
    """On a real layer's size."""
    inputs = make_inputs(Case(32, 1536, 576, input_activation=activation))
    y, wanted = run(session(inputs, activation), inputs.x), expected(inputs, activation)
    assert np.abs(y - wanted).mean() <= tolerances.SWIGLU_MEAN * np.abs(wanted).max()


@GATED
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), [(576, 960), (1534, 573)])
def test_same_bits_everywhere(
    activation: InputActivation, bits: ActivationBits, minimum: bool, in_features: int, out_features: int
) -> None:
    """Law: instruction set, threads and batch change no bit of a token's result."""
    inputs = make_inputs(
        Case(300, in_features, out_features, minimum, bias=True, input_activation=activation)
    )
    before = library.active_isa()
    results = []
    try:
        for name in library.supported_isas():
            library.select_isa(name)
            for threads in (1, 2):
                engine = session(inputs, activation, threads, bits)
                results.append(run(engine, inputs.x))
                for cut in ((0, 1), (1, 3), (3, 130), (130, 300)):
                    np.testing.assert_array_equal(run(engine, inputs.x[slice(*cut)]), results[0][slice(*cut)])
    finally:
        library.select_isa(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_token_stays_alone(isa: str, bad: float, minimum: bool, bits: ActivationBits) -> None:
    """NaN or infinity in a token gives NaN in all its outputs and touches no other token."""
    inputs = make_inputs(Case(10, 40, 33, minimum, bias=True))
    engine = session(inputs, bits=bits)
    clean = run(engine, inputs.x)
    inputs.x[4, 7] = bad
    y = run(engine, inputs.x)
    assert np.isnan(y[4]).all()
    others = np.arange(10) != 4
    np.testing.assert_array_equal(y[others], clean[others])
    np.testing.assert_array_equal(np.isnan(expected(inputs, bits=bits)), np.isnan(y))


@pytest.mark.parametrize("minimum", [False, True])
def test_saturating_products(isa: str, minimum: bool) -> None:
    """All codes 15 and activations +-127: a block's sums fit the 16 bits that some kernels keep them in."""
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (9, 256))
    x = np.concatenate([signs, np.ones((1, 256), np.float32), -np.ones((1, 256), np.float32)])
    codes = np.full((33, 256), schema.MAX_CODE, np.uint8)
    codes[11:22] = 0
    scale = np.ones((33, 8), np.float16)
    inputs = Inputs(x, BlockWeight(codes, scale, scale * -3 if minimum else None), None)
    np.testing.assert_array_equal(run(session(inputs), x), expected(inputs))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("minimum", [False, True])
def test_blocks_of_every_magnitude(isa: str, minimum: bool, bits: ActivationBits) -> None:
    """From zero and subnormal numbers to the largest: a block's power of two is the reference's."""
    blocks = 2 * 255
    x = np.random.default_rng(0).uniform(-1, 1, (4, blocks, schema.BLOCK)).astype(np.float32)
    x *= np.exp2(np.linspace(-149, 126, blocks), dtype=np.float32)[:, None]
    x[:, 7] = 0
    x[1] = x[0, ::-1]
    x[2, 140:] = 0  # subnormal numbers at most
    x[3] *= x[3] > 0
    inputs = replace(make_inputs(Case(1, blocks * schema.BLOCK, 33, minimum)), x=x.reshape(4, -1))
    np.testing.assert_array_equal(run(session(inputs, bits=bits), inputs.x), expected(inputs, bits=bits))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("minimum", [False, True])
def test_subnormal_tokens(isa: str, minimum: bool, bits: ActivationBits) -> None:
    """Down to the smallest number, beside zeros: where no finer plane exists, it adds nothing."""
    steps = np.array([0, 1, 60, 63, 64, 65, 127, 190, 255, 2**7, 2**14, 2**15 + 1, 2**22, 2**23 - 1, 2**24])
    signs = np.random.default_rng(0).choice(np.array([-1, 0, 1]), (len(steps), 100))
    x = np.ldexp((signs * steps[:, None]).astype(np.float32), -149)
    x[:, 70:] /= 3
    inputs = replace(make_inputs(Case(1, 100, 33, minimum)), x=x)
    wanted, y = expected(inputs, bits=bits), run(session(inputs, bits=bits), x)
    assert np.isfinite(wanted).all() and np.abs(wanted[-1]).max() > 0
    np.testing.assert_array_equal(y, wanted)


def test_an_outlier_costs_its_own_block_alone(isa: str) -> None:
    """Other blocks' activations are as fine as without it."""
    inputs = make_inputs(Case(5, 96, 40))
    x = inputs.x.copy()
    x[:, 32:] = np.random.default_rng(1).standard_normal((5, 64))
    x[:, 0] = 1000
    inputs.weight.codes[:, :32] = schema.CENTER
    y = run(session(inputs), x)
    wanted = x.astype(np.float64) @ dequantize_weight(inputs.weight).T
    assert np.linalg.norm(y - wanted) / np.linalg.norm(wanted) < 0.02  # by token: above 1


def test_every_float16_scale(isa: str) -> None:
    """Subnormal, negative and the largest: each number of float16 stands for itself."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    scale = bits[(bits & 0x7C00) != 0x7C00].view(np.float16)[:, None]
    weight = BlockWeight(np.full((len(scale), 1), 9, np.uint8), scale, scale)
    x = np.full((1, 1), 127, np.float32)
    symmetric = run(session(Inputs(x, replace(weight, minimum=None), None)), x)[0]
    np.testing.assert_array_equal(symmetric, 127 * scale[:, 0].astype(np.float32))
    y = run(session(Inputs(x, weight, None)), x)[0]
    np.testing.assert_array_equal(y, expected(Inputs(x, weight, None))[0])


@pytest.mark.parametrize("symmetric", [False, True])
def test_quantised_weights_give_the_float_product(isa: str, symmetric: bool) -> None:
    """With fine activations, y is x times what the blocks stand for."""
    rng = np.random.default_rng(0)
    weight = quantize_weight(rng.standard_normal((70, 200), dtype=np.float32), symmetric=symmetric)
    x = rng.standard_normal((5, 200), dtype=np.float32)
    y = run(session(Inputs(x, weight, None), bits=16), x)
    np.testing.assert_allclose(y, x @ dequantize_weight(weight).T, rtol=0, atol=5e-3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_weight_is_within_a_step_of_its_block(symmetric: bool) -> None:
    """Half a step with minima; symmetric blocks have no code for the other end of the largest value."""
    weight = np.random.default_rng(0).standard_normal((33, 70)).astype(np.float32)
    blocks = quantize_weight(weight, symmetric=symmetric)
    step = np.abs(np.repeat(blocks.scale.astype(np.float32), schema.BLOCK, axis=1)[:, :70])
    error = np.abs(dequantize_weight(blocks) - weight)
    assert (error <= step * (1.01 if symmetric else 0.51)).all()


@pytest.mark.parametrize("columns", [7, 9, 16])
def test_refuses_a_wrong_width(columns: int) -> None:
    """The message names the shape it got and the one it wants."""
    inputs = make_inputs(Case(2, 8, 16))
    with pytest.raises(Exception, match=r"x has shape \[2, \d+\], expected \[tokens, 8\]"):
        run(session(inputs), np.zeros((2, columns), np.float32))


def test_refuses_minima_of_another_shape() -> None:
    """By name."""
    inputs = make_inputs(Case(2, 40, 16, minimum=True))
    short = replace(inputs.weight, minimum=np.zeros((16, 1), np.float16))
    with pytest.raises(Exception, match=r"weight_minimum has shape \[1, 1, 16\], expected \[1, 2, 16\]"):
        run(session(replace(inputs, weight=short)), inputs.x)


def test_concurrent_runs() -> None:
    """One session serves several threads, whose batches differ in size."""
    inputs = make_inputs(Case(40, 300, 200, minimum=True))
    engine = session(inputs)
    wanted = run(engine, inputs.x)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda tokens: run(engine, inputs.x[:tokens]), list(range(1, 41)) * 2))
    for y in results:
        np.testing.assert_array_equal(y, wanted[: len(y)])

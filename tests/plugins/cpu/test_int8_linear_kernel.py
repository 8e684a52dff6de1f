"""The CPU kernel of Int8Linear against the reference, on every instruction set this machine has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kvfold.plugins.cpu import cpu_library as library
from kvfold.plugins.int8_linear import reference, schema, tolerances
from kvfold.plugins.int8_linear.inputs import Case, Inputs, make_inputs
from kvfold.plugins.int8_linear.packing import pack_weight, quantize_weight
from kvfold.plugins.int8_linear.schema import ActivationBits, InputActivation


def session(
    inputs: Inputs, activation: InputActivation = "none", threads: int = 2, bits: ActivationBits = 8
) -> onnxruntime.InferenceSession:
    """An engine of one Int8Linear node over x [T, K]."""
    packed = pack_weight(inputs.weight)
    constants = {
        "weight": packed.weight,
        "weight_scale": packed.weight_scale,
        "weight_sum": packed.weight_sum,
        **({} if inputs.bias is None else {"bias": inputs.bias}),
    }
    out_features, in_features = inputs.weight.shape
    node = helper.make_node(
        schema.OP_TYPE,
        ["x", *constants],
        ["y"],
        domain=schema.DOMAIN,
        in_features=in_features,
        out_features=out_features,
        **({} if activation == "none" else {"input_activation": activation}),
        activation_bits=bits,
    )
    graph = helper.make_graph(
        [node],
        "int8_linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", out_features])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
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
    weight, weight_scale = (torch.from_numpy(array) for array in quantize_weight(inputs.weight))
    bias = None if inputs.bias is None else torch.from_numpy(inputs.bias)
    x = torch.from_numpy(inputs.x)
    return reference.int8_linear(x, weight, weight_scale, bias, activation, bits).numpy()


@st.composite
def cases(draw: st.DrawFn, activation: InputActivation = "none") -> Case:
    """Sizes around the kernels' tiles: 8 tokens, blocks of 16 outputs x 4 inputs, panels of 3 blocks."""
    tokens = draw(st.integers(0, 20))
    return Case(
        tokens=tokens,
        in_features=draw(st.integers(1, 90)),
        out_features=draw(st.integers(1, 120)),
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
    """Every size, with and without bias."""
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


def test_finer_activations_leave_the_weights_error_only(isa: str) -> None:
    """Against exact activations over the same int8 weights, 16 bits are over 100 times closer than 8."""
    inputs = make_inputs(Case(16, 576, 64, bias=True))
    weight, scale = quantize_weight(inputs.weight)
    exact = inputs.x.astype(np.float64) @ (weight * scale[:, None].astype(np.float64)).T + inputs.bias
    coarse = np.abs(run(session(inputs), inputs.x) - exact).max()
    fine = np.abs(run(session(inputs, bits=16), inputs.x) - exact).max()
    assert fine < coarse / 100


@PROPERTY
@given(case=cases("swiglu") | cases("geglu"))
def test_fused_activations_match_the_reference(isa: str, case: Case) -> None:
    """Up to a rounding tie that falls the other way: a step times a weight of 127."""
    inputs, activation = make_inputs(case), case.input_activation
    y, wanted = run(session(inputs, activation), inputs.x), expected(inputs, activation)
    activated = reference.activate(torch.from_numpy(inputs.x), activation)
    token_scale = reference.quantize_tokens(activated)[1].numpy()
    step = token_scale * quantize_weight(inputs.weight)[1] * 127
    assert y.shape == wanted.shape
    assert (np.abs(y - wanted) <= tolerances.SWIGLU_STEPS * step + 1e-6 * np.abs(wanted)).all()


@GATED
def test_ties_of_fused_activations_are_rare(isa: str, activation: InputActivation) -> None:
    """On a real layer's size."""
    inputs = make_inputs(Case(32, 1536, 576, input_activation=activation))
    y, wanted = run(session(inputs, activation), inputs.x), expected(inputs, activation)
    assert np.abs(y - wanted).mean() <= tolerances.SWIGLU_MEAN * np.abs(wanted).max()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("activation", ["none", "swiglu", "geglu"])
@pytest.mark.parametrize(("in_features", "out_features"), [(576, 960), (1534, 573)])
def test_same_bits_everywhere(
    bits: ActivationBits, activation: InputActivation, in_features: int, out_features: int
) -> None:
    """Law: instruction set, threads and batch change no bit of a token's result."""
    inputs = make_inputs(Case(45, in_features, out_features, bias=True, input_activation=activation))
    before = library.active_isa()
    results = []
    try:
        for name in library.supported_isas():
            library.select_isa(name)
            for threads in (1, 2):
                engine = session(inputs, activation, threads, bits)
                results.append(run(engine, inputs.x))
                for cut in ((0, 1), (1, 3), (4, 12), (12, 45)):
                    np.testing.assert_array_equal(run(engine, inputs.x[slice(*cut)]), results[0][slice(*cut)])
    finally:
        library.select_isa(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("activation", ["none", "swiglu", "geglu"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_token_stays_alone(
    isa: str, bad: float, activation: InputActivation, bits: ActivationBits
) -> None:
    """NaN or infinity in a token gives NaN in all its outputs and touches no other token."""
    inputs = make_inputs(Case(10, 20, 33, bias=True, input_activation=activation))
    engine = session(inputs, activation, bits=bits)
    clean = run(engine, inputs.x)
    inputs.x[4, 7] = bad
    y = run(engine, inputs.x)
    assert np.isnan(y[4]).all()
    others = np.arange(10) != 4
    np.testing.assert_array_equal(y[others], clean[others])
    np.testing.assert_array_equal(np.isnan(expected(inputs, activation, bits)), np.isnan(y))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("magnitude", [1e-44, 1e-42, 1e-40, 1e-38, 1e38])
def test_extreme_magnitudes(isa: str, magnitude: float, bits: ActivationBits) -> None:
    """Denormal scales and sums near overflow stay the reference's; without a finer plane there is none."""
    inputs = make_inputs(Case(3, 8, 16))
    x = np.clip(inputs.x, -1, 1) * np.float32(magnitude)
    x[:, 5] = 0
    wanted = expected(Inputs(x, inputs.weight, None), bits=bits)
    assert not np.isnan(wanted).any()
    np.testing.assert_array_equal(run(session(inputs, bits=bits), x), wanted)


def test_saturating_products(isa: str) -> None:
    """All values at +-127: pairs of products of 8-bit saturating instructions would clip here."""
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (33, 256))
    weight = np.concatenate([signs, -np.abs(signs), np.abs(signs)])
    inputs = Inputs(np.concatenate([signs[:9], np.abs(signs[:1]), -np.abs(signs[:1])]), weight, None)
    np.testing.assert_array_equal(run(session(inputs), inputs.x), expected(inputs))


def test_exp_of_swiglu_over_its_whole_range(isa: str) -> None:
    """One input feature: q is always +-127, so y shows silu(gate) to float precision."""
    gate = np.concatenate([np.linspace(-100, 100, 20001), [0, -1e30, 1e30]]).astype(np.float32)
    x = np.stack([gate, np.ones_like(gate)], axis=1)
    inputs = Inputs(x, np.ones((1, 1), np.float32), None)
    y = run(session(inputs, "swiglu"), x)[:, 0]
    exact = gate.astype(np.float64) / (1 + np.exp(np.minimum(-gate.astype(np.float64), 700)))
    np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-35)


def test_geglu_over_its_whole_range(isa: str) -> None:
    """As for SwiGLU; where GELU is next to nothing, rounding the cube to float shows, relative to that."""
    gate = np.concatenate([np.linspace(-12, 12, 24001), [0, -100, 100, -1e30, 1e30]]).astype(np.float32)
    x = np.stack([gate, np.ones_like(gate)], axis=1)
    y = run(session(Inputs(x, np.ones((1, 1), np.float32), None), "geglu"), x)[:, 0]
    wide = gate.astype(np.float64)
    cube = np.sqrt(8 / np.pi) * (wide + 0.044715 * wide**3)
    np.testing.assert_allclose(y, wide / (1 + np.exp(np.minimum(-cube, 700))), rtol=2e-5, atol=1e-35)


@pytest.mark.parametrize("columns", [7, 9, 16])
def test_refuses_a_wrong_width(columns: int) -> None:
    """The message names the shape it got and the one it wants."""
    inputs = make_inputs(Case(2, 8, 16))
    with pytest.raises(Exception, match=r"x has shape \[2, \d+\], expected \[tokens, 8\]"):
        run(session(inputs), np.zeros((2, columns), np.float32))


def test_refuses_an_unknown_activation() -> None:
    """At session creation, by name."""
    inputs = make_inputs(Case(2, 8, 16))
    with pytest.raises(Exception, match="input_activation is 'gelu', expected 'none', 'swiglu' or 'geglu'"):
        session(inputs, cast(InputActivation, "gelu"))


def test_refuses_other_activation_bits() -> None:
    """At session creation, by name."""
    inputs = make_inputs(Case(2, 8, 16))
    with pytest.raises(Exception, match="activation_bits is 4, expected 8 or 16"):
        session(inputs, bits=cast(ActivationBits, 4))


def test_refuses_sums_that_could_overflow() -> None:
    """More inputs than an int32 sum can hold; the limit is the schema's."""
    inputs = make_inputs(Case(1, schema.MAX_IN_FEATURES + 1, 1))
    with pytest.raises(Exception, match=f"in_features is 131073, expected 1 to {schema.MAX_IN_FEATURES}"):
        session(inputs)


def test_concurrent_runs() -> None:
    """One session serves several threads, whose batches differ in size."""
    inputs = make_inputs(Case(40, 300, 200))
    engine = session(inputs)
    wanted = run(engine, inputs.x)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda tokens: run(engine, inputs.x[:tokens]), list(range(1, 41)) * 2))
    for y in results:
        np.testing.assert_array_equal(y, wanted[: len(y)])

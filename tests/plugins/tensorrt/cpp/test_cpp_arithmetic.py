"""The C++ plugin decides as the Python plugin does: checks and their words, kernels, grids, arguments.

What needs no TensorRT is compiled here alone and asked through ctypes; Python answers the same requests.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.plugins.cuda.attention_spec import HEAD_SIZES, PAGE_SIZES, AttentionSpec
from kvfold.plugins.cuda.kernel_library import OPENED_FILE, KernelLibrary
from kvfold.plugins.paged_attention.schema import INPUTS, OUTPUTS, Attributes
from kvfold.plugins.tensorrt.node_form import INPUTS_ATTRIBUTE, SLOTS
from tests.plugins.tensorrt.conftest import PLUGINS, run
from tests.plugins.tensorrt.cpp.compilers import COMPILER
from tests.plugins.tensorrt.cpp.cpp_request import Request, python_answer, tensors_of
from tests.plugins.tensorrt.fake_kernels import fake_kernels

PURE = (
    *("node/attention_spec", "node/attributes", "node/descriptions"),
    *("calls", "kernel_library", "launches", "open_kernels", "text"),
)
# Of these the library has kernels; others are asked for too, and have none.
HEADS, PAGES, GROUPS, TYPES = (64, 128), (16, 32), (1, 3), (("float16", "int8"), ("bfloat16", "bfloat16"))
CONSTANTS_OF_SM90 = {"split_keys": 96, "tokens_per_tile": 5}
Answer = Callable[[Request], str]


def specs() -> list[AttentionSpec]:
    """Nodes that need every kernel of the library."""
    found = []
    for head, page, group, types in itertools.product(HEADS, PAGES, GROUPS, TYPES):
        for writes, norm, sink, softcap, rotary in itertools.product((False, True), repeat=5):
            attributes = Attributes(2 * group, 2, 0.125, softcap=float(softcap), do_rotary=int(rotary))
            found.append(AttentionSpec(attributes, head, page, types[0], types[1], writes, norm, sink))  # type: ignore[arg-type]  # literals
    return found


@pytest.fixture(scope="module")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels whose constants differ between their two architectures."""
    directory = tmp_path_factory.mktemp("kernels")
    library = fake_kernels(specs(), (80, 90), directory)
    changed = [
        kernel.model_copy(update={"constants": {name: CONSTANTS_OF_SM90[name] for name in kernel.constants}})
        if kernel.architecture == 90
        else kernel
        for kernel in library.kernels
    ]
    library.model_copy(update={"kernels": tuple(changed)}).save(directory)
    return directory


@pytest.fixture(scope="module")
def kernels(kernel_folder: Path) -> KernelLibrary:
    """The same, as Python has them."""
    return KernelLibrary.load(kernel_folder)


@pytest.fixture(scope="module")
def cpp_answer(kernel_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """The C++ plugin's answer to a request."""
    folder = tmp_path_factory.mktemp("cpp")
    sources = [PLUGINS / f"cuda/cpp/{name}.cc" for name in PURE]
    sources.append(Path(__file__).with_name("cpp_answers.cc"))
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-O0", "-shared", "-fPIC", f"-I{PLUGINS}")
    target = folder / "answers.so"
    run([COMPILER, *flags, "-o", str(target), *map(str, sources)])
    library = ctypes.CDLL(str(target))
    assert library.kvfold_open_kernels(str(kernel_folder / OPENED_FILE).encode()) == 0
    function = library.kvfold_answer
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_char_p
    return lambda request: str(function(str(request).encode()).decode())


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Calls of valid nodes, most of which have kernels."""
    types = draw(st.sampled_from(TYPES))
    kv_heads = draw(st.integers(1, 4))
    number = st.floats(0, 100, width=32)
    quantised = "PER_CHANNEL" if types[1] == "int8" else "NONE"
    attributes = Attributes(
        kv_heads * draw(st.sampled_from((*GROUPS * 8, 9))),
        kv_heads,
        draw(number),
        softcap=draw(st.just(0.0) | number),
        local_window_size=draw(st.just(-1) | st.integers(1, 5000)),
        sink_size=draw(st.integers(0, 300)),
        do_rotary=draw(st.integers(0, 1)),
        qk_norm_epsilon=draw(number),
        k_quant_type=quantised,  # type: ignore[arg-type]  # a literal
        v_quant_type=quantised,  # type: ignore[arg-type]
    )
    optional = [("slot_mapping",), ("q_norm_weight", "k_norm_weight"), ("head_sink",)]
    present = {name for names in optional if draw(st.booleans()) for name in names}
    present |= {"cos_cache", "sin_cache"} if attributes.do_rotary or draw(st.booleans()) else set()
    present |= {"k_scale", "v_scale"} if types[1] == "int8" else set()
    present |= {"key", "value"} if SLOTS in present and draw(st.booleans()) else set()
    required = ("query", "key_cache", "value_cache", *INPUTS[5:8])
    inputs = tuple(draw(st.permutations([name for name in INPUTS if name in present or name in required])))
    sequences = draw(st.integers(1, 256))
    tokens = draw(st.just(sequences) | st.integers(1, 1 << 17))
    page = draw(st.sampled_from((*PAGES * 8, *PAGE_SIZES)))
    head = draw(st.sampled_from((*HEADS * 8, *HEAD_SIZES)))
    sizes = (tokens, sequences, draw(st.integers(0, 8192)), page, head)
    return Request(
        values=asdict(attributes) | {INPUTS_ATTRIBUTE: ",".join(inputs)},
        tensors=tensors_of(attributes, inputs, sizes, types),
        addresses=[(index + 1) << 36 for index in range(len(inputs) + len(OUTPUTS))],
        architecture=draw(st.sampled_from((*(80, 86, 90) * 8, 75, 100))),
    )


@st.composite
def broken_requests(draw: st.DrawFn) -> Request:
    """The same with one thing changed, so that most break the contract in one of its many ways."""
    request: Request = draw(requests())
    if draw(st.booleans()):
        values: dict[str, Any] = dict(request.values)
        name = draw(st.sampled_from((*values, "unheard_of")))
        value = st.sampled_from(
            (-2, -1, 0, 1, 2, 3, -0.5, 0.25, 2.0, 1e-9, "", "NONE", "PER_TENSOR", "query")
        )
        values[name] = draw(value)
        if draw(st.booleans()):
            del values[name]
        if name == INPUTS_ATTRIBUTE:
            count = len(request.tensors) + draw(st.integers(-1, 1))
            values[name] = ",".join(
                draw(st.lists(st.sampled_from((*INPUTS, "x")), min_size=1, max_size=count))
            )
        return replace(request, values=values)
    tensors = list(request.tensors)
    index = draw(st.integers(0, len(tensors) - 1))
    if draw(st.booleans()):
        dims = list(tensors[index].dims)
        # None is unknown (-1) once a plan runs, so none is here.
        dims[draw(st.integers(0, len(dims) - 1))] = draw(st.sampled_from((0, 1, 2, 24, 64, 256)))
        kept = draw(st.integers(0, 8)) and len(dims)  # now and then a scalar
        tensors[index] = replace(tensors[index], dims=tuple(dims[:kept]))
    else:
        dtype = draw(st.sampled_from(("float16", "bfloat16", "float32", "int8", "int32", "int64")))
        tensors[index] = replace(tensors[index], dtype=dtype)
    if draw(st.integers(0, 8)) == 0:
        tensors.pop()
    return replace(request, tensors=tensors)


@settings(max_examples=300, deadline=None)
@given(request=requests())
def test_calls_are_resolved_to_the_same_launches(
    kernels: KernelLibrary, cpp_answer: Answer, request: Request
) -> None:
    assert cpp_answer(request) == python_answer(request, kernels)


@settings(max_examples=300, deadline=None)
@given(request=broken_requests())
def test_wrong_use_is_answered_in_the_same_words(
    kernels: KernelLibrary, cpp_answer: Answer, request: Request
) -> None:
    assert cpp_answer(request) == python_answer(request, kernels)

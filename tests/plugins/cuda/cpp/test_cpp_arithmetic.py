"""C++ decides as the Python reference does: checks and their words, kernels, grids, arguments.

What needs no driver is compiled here alone and asked through ctypes; Python answers the same requests.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import HEAD_SIZES, PAGE_SIZES, AttentionSpec, variants_of
from kvfold.plugins.cuda.kernel_library import OPENED_FILE, KernelLibrary
from kvfold.plugins.paged_attention.schema import INPUTS, OUTPUTS, Attributes
from kvfold.plugins.tensorrt.attributes import Node, read_node
from kvfold.plugins.tensorrt.node_form import INPUTS_ATTRIBUTE, SLOTS
from tests.plugins.cuda.cpp.compile_cpp import compile_cpp
from tests.plugins.cuda.cpp.cpp_request import Request, Tensor, python_answer, tensors_of
from tests.plugins.cuda.fake_kernels import fake_kernels
from tests.plugins.tensorrt.attention_models import CONSUMER, DONOR, PRODUCER, SPEC
from tests.root import ROOT

CPP = ROOT / "plugins/cuda/cpp"
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
def other_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of another engine in the same process."""
    directory = tmp_path_factory.mktemp("other")
    fake_kernels((SPEC,), (75, 80), directory)
    return directory


@pytest.fixture(scope="module")
def cpp_answer(kernel_folder: Path, other_kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """C++'s answer to a request."""
    sources = [*(CPP / f"{name}.cc" for name in PURE), Path(__file__).with_name("cpp_answers.cc")]
    flags = ("-Wall", "-Wextra", "-Werror", "-O0", "-shared", "-fPIC")
    target = compile_cpp(tmp_path_factory.mktemp("cpp") / "answers.so", *flags, *sources)
    library = ctypes.CDLL(str(target))
    for each in (kernel_folder, other_kernels):
        assert library.kvfold_open_kernels(str(each / OPENED_FILE).encode()) == 0
    function = library.kvfold_answer
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_char_p
    own = KernelLibrary.load(kernel_folder).sha256

    def answer(request: Request) -> str:
        """By these kernels, unless the request names others."""
        named = replace(request, kernels=request.kernels or own)
        return str(function(str(named).encode()).decode())

    return answer


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
        draw(st.floats(0, 100, width=32, exclude_min=True)),
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
    head = draw(st.sampled_from((*HEADS * 48, *HEAD_SIZES)))
    sizes = (tokens, sequences, draw(st.integers(0, 8192)), page, head)
    return Request(
        values=asdict(attributes) | {INPUTS_ATTRIBUTE: ",".join(inputs)},
        tensors=tensors_of(attributes, inputs, sizes, types),
        addresses=[(index + 1) << 36 for index in range(len(inputs) + len(OUTPUTS))],
        architecture=draw(st.sampled_from((*(80, 86, 90) * 8, 75, 100))),
    )


@st.composite
def broken_values(draw: st.DrawFn) -> Request:
    """The same with one attribute changed, so that most break the contract in one of its many ways."""
    request: Request = draw(requests())
    values: dict[str, Any] = dict(request.values)
    name = draw(st.sampled_from((*values, "unheard_of")))
    value = st.sampled_from((-2, -1, 0, 1, 2, 3, -0.5, 0.25, 2.0, 1e-9, "", "NONE", "PER_TENSOR", "query"))
    values[name] = draw(value)
    if draw(st.booleans()):
        del values[name]
    if name == INPUTS_ATTRIBUTE:
        count = len(request.tensors) + draw(st.integers(-1, 1))
        values[name] = ",".join(draw(st.lists(st.sampled_from((*INPUTS, "x")), min_size=1, max_size=count)))
    return replace(request, values=values)


@settings(max_examples=300, deadline=None)
@given(request=requests())
def test_calls_are_resolved_to_the_same_launches(
    kernels: KernelLibrary, cpp_answer: Answer, request: Request
) -> None:
    assert cpp_answer(request) == python_answer(request, kernels)


@settings(max_examples=300, deadline=None)
@given(request=broken_values())
def test_wrong_attributes_are_answered_in_the_same_words(cpp_answer: Answer, request: Request) -> None:
    """Attributes that pass may disagree with the inputs, which the table below has."""
    first, *_ = cpp_answer(request).splitlines()
    try:
        node = read_node("layers.3", request.values)
    except KernelError as error:
        assert first == f"error: {error}"
    else:
        assert first == f"node of {', '.join(node.inputs)}"


@pytest.mark.parametrize("scale", [0.0, -0.5, math.inf, math.nan])
def test_a_scale_that_is_no_positive_number_is_refused(cpp_answer: Answer, scale: float) -> None:
    answer = cpp_answer(replace(request_of(PRODUCER), values=PRODUCER.values() | {"scale": scale}))
    assert answer == f"error: attention node layers.3: scale is {scale}, and must be a positive number\n"


def test_each_engines_nodes_have_its_own_kernels(cpp_answer: Answer, other_kernels: Path) -> None:
    other = KernelLibrary.load(other_kernels)
    request = replace(request_of(PRODUCER), architecture=75)
    assert "for SM 75 (compiled for 80, 90)" in cpp_answer(request)
    named = replace(request, kernels=other.sha256)
    assert cpp_answer(named) == python_answer(named, other)


def test_absent_attributes_have_the_schemas_defaults(cpp_answer: Answer) -> None:
    optional = ("softcap", "do_rotary", "rotary_interleaved", "qk_norm_epsilon")
    values = {name: value for name, value in PRODUCER.values().items() if name not in optional}
    request = request_of(PRODUCER)
    assert cpp_answer(replace(request, values=values)) == cpp_answer(request)


TENSORS = {
    "query": Tensor("float16", (7, 640)),
    "key": Tensor("float16", (7, 128)),
    "value": Tensor("float16", (7, 128)),
    "key_cache": Tensor("int8", (50, 32, 2, 64)),
    "value_cache": Tensor("int8", (50, 32, 2, 64)),
    "cumulative_sequence_length": Tensor("int32", (4,)),
    "past_seqlens": Tensor("int32", (3,)),
    "block_table": Tensor("int32", (3, 9)),
    "cos_cache": Tensor("float32", (1024, 32)),
    "sin_cache": Tensor("float32", (1024, 32)),
    "slot_mapping": Tensor("int32", (7,)),
    "head_sink": Tensor("float32", (6,)),
    "q_norm_weight": Tensor("float32", (64,)),
    "k_norm_weight": Tensor("float32", (64,)),
    "k_scale": Tensor("float32", (2, 1, 64)),
    "v_scale": Tensor("float32", (2, 1, 64)),
}


def request_of(node: Node, **changed: Tensor) -> Request:
    """A call of 7 tokens of 3 sequences, with some of its inputs changed."""
    tensors = TENSORS | ({} if node.packed else {"query": Tensor("float16", (7, 384))}) | changed
    count = len(node.inputs) + len(node.outputs)
    return Request(node.values(), [tensors[name] for name in node.inputs], [1 << 36] * count, architecture=80)


@pytest.mark.parametrize("node", [PRODUCER, DONOR, CONSUMER], ids=["packed", "apart", "consumer"])
def test_sizes_that_are_not_known_yet_fit(cpp_answer: Answer, node: Node) -> None:
    """Down to the names of kernels, which is all that a plan needs before its profiles are known."""
    unknown = {
        "query": Tensor("float16", (-1, 640 if node.packed else 384)),
        "key_cache": Tensor("int8", (-1, 32, 2, 64)),
        "past_seqlens": Tensor("int32", (-1,)),
        "block_table": Tensor("int32", (-1, -1)),
    }
    names = [variant.name for variant in variants_of(replace(SPEC, writes=node.writes))]
    assert cpp_answer(request_of(node, **unknown)).splitlines()[1:5] == names


WRONG = [
    ("query", Tensor("float32", (7, 640)), "query is float32; the kernels compute float16 and bfloat16"),
    ("cos_cache", Tensor("float16", (1024, 32)), "cos_cache is float16, and must be float32"),
    ("slot_mapping", Tensor("int64", (7,)), "slot_mapping is int64, and must be int32"),
    (
        "value_cache",
        Tensor("float16", (50, 32, 2, 64)),
        "value_cache is float16, and must be int8 (k_quant_type is PER_CHANNEL)",
    ),
    ("key_cache", Tensor("int8", (50, 32, 128)), "key_cache has shape [50, 32, 128]; it must be [pages"),
    ("key_cache", Tensor("int8", (50, 32, 2, -1)), "key_cache has shape [50, 32, 2, ?]; it must be [pages"),
    ("key_cache", Tensor("int8", (50, 24, 2, 64)), "page size 24 is not a power of two; there are 16, 32"),
    ("key_cache", Tensor("int8", (50, 256, 2, 64)), "page size 256 has no kernel; there are 16, 32, 64, 128"),
    ("key_cache", Tensor("int8", (50, 32, 2, 84)), "head size 84 has no kernel; there are 64 to 256 in"),
    ("key_cache", Tensor("int8", (50, 32, 3, 64)), "key_cache has shape [50, 32, 3, 64], and must"),
    ("value_cache", Tensor("int8", (49, 32, 2, 64)), "value_cache has shape [49, 32, 2, 64], and must"),
    ("query", Tensor("float16", (7, 384)), "query has shape [7, 384], and must have [7, 640]"),
    ("cumulative_sequence_length", Tensor("int32", (3,)), "cumulative_sequence_length has shape [3]"),
    ("block_table", Tensor("int32", (4, 9)), "block_table has shape [4, 9], and must have [3, ?]"),
    ("slot_mapping", Tensor("int32", (8,)), "slot_mapping has shape [8], and must have [7]"),
    ("sin_cache", Tensor("float32", (1023, 32)), "sin_cache has shape [1023, 32], and must have [1024, 32]"),
    ("past_seqlens", Tensor("int32", ()), "past_seqlens has shape [], and must have [?]"),
    ("k_scale", Tensor("float32", (2, 64)), "k_scale has shape [2, 64], and must have [2, 1, 64]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tensor", "message"), WRONG, ids=lambda each: str(each)[:48])
def test_wrong_types_and_shapes_are_named(
    cpp_answer: Answer, name: str, tensor: Tensor, message: str
) -> None:
    last = cpp_answer(request_of(PRODUCER, **{name: tensor})).splitlines()[-1]
    assert last.startswith(f"error: attention node layers.3: {message}")


def test_keys_and_values_apart_must_agree(cpp_answer: Answer) -> None:
    answer = cpp_answer(request_of(DONOR, value=Tensor("float16", (7, 64))))
    assert "value has shape [7, 64], and must have [7, 128]" in answer


def test_inputs_are_counted(cpp_answer: Answer) -> None:
    request = request_of(PRODUCER)
    answer = cpp_answer(replace(request, tensors=request.tensors[:-1]))
    assert "has 10 inputs, and its attribute inputs lists query, key_cache" in answer

"""Real builds with TensorRT-RTX on the CPU: what its parser and builder make of the plugin.

A build calls everything but enqueue, which needs a GPU: `make gpu-check` runs it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvfold.plugins.cuda.attention_spec import AttentionSpec
from kvfold.plugins.cuda.cuda_library import library_path
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.launches import Shapes, workspace_sizes
from kvfold.plugins.tensorrt.library_path import environment_for
from tests.plugins.cuda.fake_kernels import fake_kernels
from tests.plugins.tensorrt.attention_models import CONSUMER, PRODUCER, SPEC, Model, Shape
from tests.root import ROOT

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed; it would build plans with the plugin"
)

ARCHITECTURES = (80, 89)  # as in `plan_build_worker`
PAGES, TABLE_WIDTH = 64, 16
# (tokens, sequences) at least, typically and at most: decoding has as many tokens as sequences.
DECODE, PREFILL = ((1, 1), (4, 4), (8, 8)), ((1, 1), (64, 2), (256, 4))
CONSUMING = replace(SPEC, writes=False)


def build(
    folder: Path,
    model: Model,
    *,
    options: tuple[str, ...] = (),
    specs: tuple[AttentionSpec, ...] = (SPEC, CONSUMING),
    split_keys: bool = True,
) -> dict[str, Any]:
    """Build in a subprocess, as a crash of the library must not end the tests."""
    (folder / "kernels").mkdir()
    fake_kernels(specs, ARCHITECTURES, folder / "kernels", split_keys)
    (folder / "model.onnx").write_bytes(model.to_bytes())
    (folder / "profiles.json").write_text(json.dumps([profile(model, DECODE), profile(model, PREFILL)]))
    (folder / "lib").mkdir()
    command = [sys.executable, "-m", "tests.plugins.tensorrt.plan_build_worker", str(folder), *options]
    environment = environment_for("tensorrt_rtx", folder / "lib")
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def profile(model: Model, sizes: tuple[tuple[int, int], ...]) -> dict[str, list[list[int]]]:
    """Shapes of every graph input at a profile's three points."""

    def at(shape: Shape, tokens: int, sequences: int) -> list[int]:
        names = {"tokens": tokens, "sequences": sequences, "sequences_and_one": sequences + 1}
        names |= {"pages": PAGES, "table_width": TABLE_WIDTH}
        return [names[size] if isinstance(size, str) else size for size in shape]

    return {name: [at(shape, *each) for each in sizes] for name, (_, shape) in model.inputs().items()}


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A producer and a consumer of its cache, built."""
    folder = tmp_path_factory.mktemp("two_nodes")
    result = build(folder, Model((PRODUCER, CONSUMER)))
    kernels = KernelLibrary.load(folder / "kernels").sha256
    return result | {"bytes": (folder / "model.plan").read_bytes(), "kernels": kernels}


def test_producer_and_consumer_share_a_cache_in_place(two_nodes: dict[str, Any]) -> None:
    assert two_nodes["plan"] > 0
    assert "error" not in two_nodes
    cache = ["INT8", [-1, 32, 2, 64]]
    output = ["HALF", [-1, 6 * 64]]
    assert two_nodes["outputs"] == {
        "output.0": output,
        "key_cache_out": cache,
        "value_cache_out": cache,
        "output.1": output,
    }
    assert two_nodes["modules"] == []  # neither torch nor Triton, and no driver during a build


def test_a_plan_holds_every_nodes_attributes_and_kernels(two_nodes: dict[str, Any]) -> None:
    """TensorRT copies them after the callback has returned, out of memory that it does not hold."""
    plan: bytes = two_nodes["bytes"]
    copies = [plan.count(",".join(node.inputs).encode() + b"\0") for node in (PRODUCER, CONSUMER)]
    assert all(copies)
    assert b"PER_CHANNEL\0" in plan
    assert plan.count(two_nodes["kernels"].encode() + b"\0") == sum(copies)


def test_a_plan_takes_the_library_along(tmp_path: Path) -> None:
    build(tmp_path, Model(), options=("serialize",))
    assert library_path().read_bytes() in (tmp_path / "model.plan").read_bytes()


def test_bfloat16_and_its_cache(tmp_path: Path) -> None:
    attributes = replace(SPEC.attributes, k_quant_type="NONE", v_quant_type="NONE")
    spec = replace(SPEC, attributes=attributes, activation_dtype="bfloat16", cache_dtype="bfloat16")
    node = replace(PRODUCER, attributes=attributes, inputs=PRODUCER.inputs[:-2])
    dtypes = dict.fromkeys(("query.0", "key_cache", "value_cache"), "bfloat16")
    result = build(tmp_path, Model((node,), dtypes=dtypes), specs=(spec,))
    assert result["outputs"]["output.0"] == ["BF16", [-1, 6 * 64]]
    assert result["outputs"]["key_cache_out"][0] == "BF16"
    assert result["plan"] > 0


def test_scratch_memory_is_that_of_each_profiles_largest_call(tmp_path: Path) -> None:
    result = build(tmp_path, Model())
    decode = Shapes(8, 8, TABLE_WIDTH)
    # The prefill profile takes calls of four single tokens too, but its prompts need more.
    prefill = Shapes(256, 4, TABLE_WIDTH)
    expected = [sum(workspace_sizes(SPEC, shapes, 64).values()) for shapes in (decode, prefill)]
    told = [re.fullmatch(r"Max Scratch Memory: (\d+) bytes", line) for line in result["log"]]
    assert [int(match[1]) for match in told if match] == expected


def test_caches_in_place_need_the_preview_feature(tmp_path: Path) -> None:
    result = build(tmp_path, Model(), options=("no-alias",))
    assert result["refused"] == "no plan"
    assert any("alias" in line.lower() for line in result["log"])


# One for each callback that finds fault; `test_attributes` and `test_cpp_arithmetic` have all the faults.
WRONG: dict[str, tuple[Model, str]] = {
    "missing attribute": (
        Model(values={"num_heads": None}),
        "attribute num_heads is missing; lower the graph again with this kvfold",
    ),
    "wrong type": (Model(values={"num_heads": 6.0}), "attribute num_heads is 6.0, and must be one int"),
    "list": (Model(values={"scale": [0.5, 0.5]}), "attribute scale is [0.5, 0.5], and must be one float"),
    "number of inputs": (
        Model(values={"inputs": ",".join(PRODUCER.inputs) + ",head_sink"}),
        "has 11 inputs, and its attribute inputs lists query, key_cache",
    ),
    "cache type": (
        Model(dtypes={"key_cache": "float16"}),
        "key_cache is float16, and must be int8 (k_quant_type is PER_CHANNEL)",
    ),
    "page size": (
        Model(shapes=dict.fromkeys(("key_cache", "value_cache"), ("pages", 48, 2, 64))),
        "page size 48 is not a power of two; there are 16, 32, 64, 128",
    ),
    "head size": (
        Model(shapes=dict.fromkeys(("key_cache", "value_cache"), ("pages", 32, 2, 84))),
        "head size 84 has no kernel; there are 64 to 256 in steps of 8",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_answered_with_the_nodes_name(tmp_path: Path, case: str) -> None:
    model, message = WRONG[case]
    result = build(tmp_path, model)
    assert result["error"].startswith(f"KernelError: attention node {PRODUCER.name}: {message}")
    assert "plan" not in result


def test_of_two_nodes_one_without_kernels_is_named(tmp_path: Path) -> None:
    """Also that a failing build with several plugins does not take the process down."""
    result = build(tmp_path, Model((PRODUCER, CONSUMER)), specs=(SPEC,))
    assert f"attention node {CONSUMER.name}: there is no attention kernel append-" in result["error"]
    assert "for SM 80 (compiled for no architecture); build the engine with SM 80" in result["error"]


def test_without_a_size_of_its_scratch_memory_there_is_no_plan(tmp_path: Path) -> None:
    """The size has no value that means an error; TensorRT-RTX would go on with 0 bytes."""
    result = build(tmp_path, Model(), split_keys=False)
    assert "does not say its split_keys" in result["error"]
    assert "plan" not in result

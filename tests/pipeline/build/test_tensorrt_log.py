"""What is read from a build's log; the lines are shortened copies of TensorRT-RTX 1.7.1's."""

from __future__ import annotations

import pytest

from kvfold.pipeline.build.tensorrt.read_log import describe_failure, differences, read_layers

QKV, HEAD, ATTENTION = "model.layers.0.self_attn.qkv_proj", "lm_head", "model.layers.0.self_attn"


def layer(name: str, kind: str, datatype: str = "Half", profile: int = 0, node: str = "") -> str:
    suffix = f" [profile {profile}]" if profile else ""
    tensor = f"{{ Name: x{suffix}, Dimensions: [-1,576], Datatype: {datatype}, Format: (Linear) Row major }}"
    operands = f"Inputs: [ {tensor}], Constants: [ {tensor}], Outputs: [ {tensor}]"
    metadata = f"[ONNX Layer: {node}]" if node else ""
    return f"Name: {name}, LayerType: {kind}, {operands}, Metadata: {metadata}"


def log(qkv: str = "Int8", attention: str = "PluginV3", profiles: tuple[int, ...] = (0, 1)) -> str:
    lines = ["[X] Layers:", "    Name: __mye190_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: []"]
    for profile in profiles:
        lines += [
            layer(f"{QKV}.Gemm_myl{4 + profile}_2", "gemm", qkv, profile, f"{QKV}.Gemm"),
            layer("__myl_MulCast_myl4_3", "kgen", "Int32", profile, f"{QKV}.Gemm"),
            layer(f"{ATTENTION}.PagedAttention", attention, "Half", profile, f"{ATTENTION}.PagedAttention"),
            layer("__myl_FcCast_myl19_8", "runtime_fusion", "Half", 0, f"{HEAD}.Gemm"),
        ]
    return "\n".join(lines)


def check(text: str) -> tuple[str, ...]:
    return differences(read_layers(text), {QKV: "int8", HEAD: "float16"}, [ATTENTION])


@pytest.mark.parametrize("attention", ["PluginV3", "custom_layer"])
def test_the_wanted_engine_passes(attention: str) -> None:
    assert check(log(attention=attention)) == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (log(qkv="Half"), f"{QKV} is float16 in profile 0, int8 was asked for"),
        (log(qkv="Half").replace("Half", "Int8", 1), f"{QKV} is float16 in profile 0"),
        (log(profiles=(0,)), f"{HEAD} is no GEMM in profile 1, float16 was asked for"),
        (log(attention="kgen"), f"{ATTENTION} has no attention layer in profile 1"),
        (log() + "\n" + layer("p", "PluginV3", node="model.other.Attend"), "model.other is an unexpected"),
        ("", f"{HEAD} is no GEMM in profile 0, float16 was asked for"),
    ],
)
def test_another_engine_is_told_apart(text: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in check(text))


def test_without_an_error_the_last_words_are_quoted() -> None:
    assert describe_failure("one\nModuleNotFoundError: no module named polygraphy") == (
        "  one\n  ModuleNotFoundError: no module named polygraphy"
    )


def test_a_failure_names_node_shapes_and_types() -> None:
    text = "\n".join(
        [
            "[X] a.Gemm [Gemm] inputs: [x -> (-1, 128)[HALF]], [w -> (256, 128)[HALF]], ",
            "[X] b.Add [Add] inputs: [y -> (-1, 256)[HALF]], [z -> (3)[FLOAT]], ",
            "[E] IElementWiseLayer b.Add: operands have types HALF and FLOAT",
            "[E] IElementWiseLayer b.Add: operands have types HALF and FLOAT",
        ]
    )
    assert describe_failure(text).splitlines() == [
        "  IElementWiseLayer b.Add: operands have types HALF and FLOAT",
        "  node b.Add [Add]: [y -> (-1, 256)[HALF]], [z -> (3)[FLOAT]]",
    ]

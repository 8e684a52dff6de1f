"""What a build's log proves: the precision of every linear, the attention layers, or why it failed.

The lines are those of TensorRT-RTX 1.7.1 under detailed profiling verbosity. One is a layer of the compiled
engine for one profile, with the types of its inputs and the ONNX nodes that it computes. An int8 linear is a
layer of its own, a float one may be fused with what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_LAYER = re.compile(
    r"^\s*Name: (?P<name>.+?), LayerType: (?P<kind>\w+), (?P<operands>Inputs: .*?), Outputs: .*$",
    re.MULTILINE,
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: (?P<path>[\w.]+)\.(?P<op>\w+)\]")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_DTYPES = {"Int8": "int8", "Half": "float16", "BFloat16": "bfloat16", "Float": "float32"}
_LINEAR_KINDS = ("gemm", "runtime_fusion")
_PLUGIN_KINDS = ("PluginV3", "custom_layer")
_ERROR = re.compile(r"^\[(?:E|!)\] (.*)$", re.MULTILINE)
_PARSED = re.compile(r"^\[X\] (?P<node>\S+ \[\w+\]) inputs: (?P<inputs>.*?),? *$", re.MULTILINE)
PROFILES = 2


@dataclass(frozen=True)
class BuiltLayers:
    """What the engine was compiled to.

    Attributes:
        linears: precision of each GEMM by (module path, profile).
        attention: (module path, profile) of every plugin layer.
    """

    linears: Mapping[tuple[str, int], str]
    attention: frozenset[tuple[str, int]]


def read_layers(log: str) -> BuiltLayers:
    """The layers that a finished build lists."""
    linears: dict[tuple[str, int], str] = {}
    attention = set()
    profile = 0
    for layer in _LAYER.finditer(log):
        # Profiles follow one another; not every layer of a later one is marked.
        profile = max(profile, *(int(number) for number in _PROFILE.findall(layer[0])), 0)
        for node in _ONNX_NODE.finditer(layer[0]):
            place = node["path"], profile
            if node["op"] == "Gemm" and layer["kind"] in _LINEAR_KINDS:
                linears[place] = _precision(_DATATYPE.findall(layer["operands"]))
            elif layer["kind"] in _PLUGIN_KINDS:
                attention.add(place)
    return BuiltLayers(linears, frozenset(attention))


def _precision(operands: list[str]) -> str:
    """int8 where both operands are, else the first float type; scales that are fused come after it."""
    if operands.count("Int8") == 2:
        return "int8"
    found = next((each for each in operands if each != "Int8"), "unknown")
    return _DTYPES.get(found, found)


def differences(
    built: BuiltLayers, linears: Mapping[str, str], attention: Collection[str]
) -> tuple[str, ...]:
    """Where the engine is not what was asked for, in each profile; empty when it is.

    Args:
        built: from its log.
        linears: wanted precision of every linear by module path.
        attention: module paths of the attention layers.
    """
    problems = []
    for profile in range(PROFILES):
        for path, precision in linears.items():
            found = built.linears.get((path, profile), "no GEMM")
            if found != precision:
                problems.append(f"{path} is {found} in profile {profile}, {precision} was asked for")
        layers = {path for path, of_profile in built.attention if of_profile == profile}
        problems += [
            f"{path} has no attention layer in profile {profile}" for path in set(attention) - layers
        ]
        problems += [f"{path} is an unexpected plugin layer" for path in layers - set(attention)]
    return tuple(problems)


def describe_failure(log: str) -> str:
    """The library's own errors, or its last words, and the nodes they name with their shapes and types."""
    errors = list(dict.fromkeys(_ERROR.findall(log)))
    text = "\n".join(errors)
    parsed = list(_PARSED.finditer(log))
    named = [node for node in parsed if node["node"].split()[0] in text]
    lines = [f"  {error}" for error in errors[:10]]
    if not errors:
        lines = [f"  {line}" for line in log.splitlines()[-5:]]
    lines += [f"  node {node['node']}: {node['inputs']}" for node in (named or parsed[-1:])[:5]]
    return "\n".join(lines)

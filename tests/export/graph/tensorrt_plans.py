"""TensorRT-RTX builds a plan from a lowered graph, without a GPU and with kernels that hold no code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx

from kvfold.plugins.cuda.attention_spec import ActivationDtype, AttentionSpec, CacheDtype
from kvfold.plugins.paged_attention.schema import DOMAIN, Attributes
from kvfold.plugins.tensorrt.library_path import environment_for
from kvfold.plugins.tensorrt.node_form import INPUTS_ATTRIBUTE
from tests.plugins.cuda.fake_kernels import fake_kernels
from tests.root import ROOT

NUM_PAGES = 16


def build_plan_of(
    path: Path, dtype: ActivationDtype, cache_dtype: CacheDtype, folder: Path
) -> dict[str, Any]:
    """What `plan_build_worker` tells of the build; it fails where there is no plan."""
    model = onnx.load(path)
    for name in ("kernels", "links"):
        (folder / name).mkdir()
    fake_kernels(attention_specs(model, dtype, cache_dtype), [80, 89], folder / "kernels")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "profiles.json").write_text(json.dumps(profiles(model)))
    worker = [sys.executable, "-m", "tests.plugins.tensorrt.plan_build_worker", str(folder)]
    environment = environment_for("tensorrt_rtx", folder / "links")
    subprocess.run(worker, cwd=ROOT, env=environment, check=True, timeout=120)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def attention_specs(
    model: onnx.ModelProto, dtype: ActivationDtype, cache_dtype: CacheDtype
) -> list[AttentionSpec]:
    """One for each attention node."""
    head_sizes = {
        value.name: value.type.tensor_type.shape.dim[3].dim_value
        for value in model.graph.input
        if value.name.startswith("key_cache")
    }
    head_size = next(iter(head_sizes.values()))
    specs = []
    for node in (node for node in model.graph.node if node.domain == DOMAIN):
        values: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        values = {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}
        inputs = values.pop(INPUTS_ATTRIBUTE).split(",")
        attributes = Attributes(**values)
        specs.append(
            AttentionSpec(
                attributes,
                head_size=head_size,
                page_size=16,
                activation_dtype=dtype,
                cache_dtype=cache_dtype,
                writes="slot_mapping" in inputs,
                qk_norm="q_norm_weight" in inputs,
                head_sink="head_sink" in inputs,
            )
        )
    return specs


def profiles(model: onnx.ModelProto) -> list[dict[str, list[list[int]]]]:
    """Smallest, usual and largest shapes of decoding and prefill."""
    found = []
    for tokens in ((1, 4, 8), (1, 64, 128)):
        sizes = {"tokens": tokens, "batch": (1, 4, 8), "batch + 1": (2, 5, 9), "rows": (1, 4, 8)}
        shapes = {}
        for value in model.graph.input:
            dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            shapes[value.name] = [
                [d if isinstance(d, int) else sizes.get(d, (NUM_PAGES,) * 3)[i] for d in dims]
                for i in range(3)
            ]
        found.append(shapes)
    return found

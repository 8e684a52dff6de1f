"""Creator and plugin as TensorRT-RTX calls them when it loads a plan, and calls that only a GPU would make.

The library itself cannot deserialise without a GPU, so the test calls what it would call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.attention_spec import AttentionSpec
from kvfold.plugins.cuda.launches import Shapes
from kvfold.plugins.tensorrt import load_plugins as load_plugins_module
from kvfold.plugins.tensorrt.fields import write_fields
from kvfold.plugins.tensorrt.host import Host
from kvfold.plugins.tensorrt.load_plugins import load_plugins
from kvfold.plugins.tensorrt.node_form import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from kvfold.plugins.tensorrt.saved_node import saved_values
from tests.plugins.tensorrt.attention_models import CONSUMER, PRODUCER, SPEC
from tests.plugins.tensorrt.fake_kernels import fake_kernels

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; its plugin classes are used")

DIMS = {
    "query": (7, 640),
    "key_cache": (50, 32, 2, 64),
    "value_cache": (50, 32, 2, 64),
    "cumulative_sequence_length": (4,),
    "past_seqlens": (3,),
    "block_table": (3, 9),
    "cos_cache": (1024, 32),
    "sin_cache": (1024, 32),
    "slot_mapping": (7,),
    "k_scale": (2, 1, 64),
    "v_scale": (2, 1, 64),
}
ADDRESSES = [1000 * (index + 1) for index in range(len(PRODUCER.inputs))]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return load_plugins(trt, fake_kernels((SPEC,), (86,), tmp_path), tmp_path, (86,))


def create(values: dict[str, Any] | None = None, phase: Any = trt.TensorRTPhase.BUILD) -> Any:
    """A plugin for a build, of PRODUCER unless told otherwise."""
    creator = trt.get_plugin_registry().get_creator(PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    fields = write_fields(trt, PRODUCER.values() if values is None else values)
    return creator.create_plugin(PRODUCER.name, fields.collection, phase)


def load(kernels_sha256: str) -> Any:
    """The plugin of a plan that was built with such kernels."""
    return create(saved_values(PRODUCER, kernels_sha256), trt.TensorRTPhase.RUNTIME)


def descriptions() -> list[SimpleNamespace]:
    types = {"query": trt.DataType.HALF, "key_cache": trt.DataType.INT8, "value_cache": trt.DataType.INT8}
    small = dict.fromkeys(("cos_cache", "sin_cache", "k_scale", "v_scale"), trt.DataType.FLOAT)
    return [
        SimpleNamespace(type=(types | small).get(name, trt.DataType.INT32), dims=trt.Dims(DIMS[name]))
        for name in PRODUCER.inputs
    ]


def record_launches(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    launches: list[tuple[Any, ...]] = []
    monkeypatch.setattr(host.launcher, "launch", lambda *arguments: launches.append(arguments))
    return launches


def test_a_plans_fields_make_the_same_node_again(host: Host) -> None:
    built = create()  # the fields point into its memory
    saved = built.get_fields_to_serialize()
    loaded = trt.get_plugin_registry().get_creator(PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    plugin = loaded.create_plugin(PRODUCER.name, saved, trt.TensorRTPhase.RUNTIME)
    assert plugin.node.inputs == PRODUCER.inputs
    assert plugin.node.values() == pytest.approx(PRODUCER.values())
    assert host.nodes == {PRODUCER.name: plugin.node}


def test_a_plan_of_other_kernels_is_refused(host: Host) -> None:
    """`test_saved_node` has the whole message, which the C++ plugin says too."""
    message = f"plan was built with kernels ffffffffffff, and these are {host.kernels.sha256[:12]};"
    with pytest.raises(KernelError, match=message), host.surfacing_errors():
        load("f" * 64)


def test_a_later_load_replaces_the_kernels_of_new_plugins_only(host: Host, tmp_path: Path) -> None:
    old = load(host.kernels.sha256)
    again = load_plugins(trt, host.kernels, tmp_path, (86,))
    new = load(host.kernels.sha256)
    assert (old.host, new.host) == (host, again)
    assert old.clone().host is host


def test_a_plugin_of_another_library_is_not_overruled(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_plugins_module, "_CREATORS", {})  # as if the C++ library had registered it
    with pytest.raises(KernelError, match="tensorrt_rtx has a plugin kvfold::PagedAttention 1 already"):
        load_plugins(trt, host.kernels, Path(), (86,))


def test_clones_are_the_same_plugin(host: Host) -> None:
    plugin = load(host.kernels.sha256)
    for copy in (plugin.clone(), plugin.attach_to_context(None)):
        assert copy is not plugin
        assert (copy.node, copy.builds, copy.num_outputs) == (plugin.node, False, 3)
        assert copy.get_capability_interface(trt.PluginCapabilityType.RUNTIME) is copy


def test_a_call_reaches_the_launcher_by_name(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = record_launches(host, monkeypatch)
    outputs = [5, *ADDRESSES[1:3]]
    load(host.kernels.sha256).enqueue(descriptions(), [], ADDRESSES, outputs, 1 << 40, 77)
    buffers = dict(zip((*PRODUCER.inputs, *PRODUCER.outputs), ADDRESSES + outputs, strict=True))
    spec: AttentionSpec = launches[0][0]
    assert launches == [(spec, Shapes(7, 3, 9), buffers, 1 << 40, 77)]
    assert (spec.head_size, spec.cache_dtype, spec.writes) == (64, "int8", True)


def test_a_build_launches_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = record_launches(host, monkeypatch)
    plugin = create().clone()
    plugin.enqueue(descriptions(), [], ADDRESSES, [5, *ADDRESSES[1:3]], 1 << 40, 77)
    assert launches == []


def test_a_cache_that_is_not_in_place_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    record_launches(host, monkeypatch)
    plugin = load(host.kernels.sha256)
    moved = [5, ADDRESSES[1], 6]
    with (
        pytest.raises(KernelError, match=r"layers\.0\.attention: value_cache_out is not where its input is"),
        host.surfacing_errors(),
    ):
        plugin.enqueue(descriptions(), [], ADDRESSES, moved, 1 << 40, 77)


def test_an_error_of_a_callback_comes_in_place_of_tensorrts(host: Host) -> None:
    def tensorrt() -> None:
        with pytest.raises(KernelError):
            create(PRODUCER.values() | {"num_heads": 7})
        raise RuntimeError("could not create the plugin")

    with (
        pytest.raises(KernelError, match="num_heads 7 is not a multiple of kv_num_heads 2") as caught,
        host.surfacing_errors(),
    ):
        tensorrt()
    assert str(caught.value.__cause__) == "could not create the plugin"


def test_errors_of_tensorrt_itself_pass(host: Host) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), host.surfacing_errors():
        raise RuntimeError("out of memory")


def test_a_mistake_of_ours_is_recorded_with_the_node(host: Host) -> None:
    plugin = create()
    with pytest.raises(KernelError, match=r"attention node layers\.0\.attention: IndexError: tuple index"):
        plugin.get_aliased_input(3)
    assert len(host.errors) == 1


@pytest.mark.parametrize("node", [PRODUCER, CONSUMER])
def test_only_row_major_tensors_of_the_contracts_types(host: Host, node: Any) -> None:
    plugin = create(node.values())

    def takes(name: str, kind: Any, layout: Any = trt.TensorFormat.LINEAR) -> bool:
        names = (*node.inputs, *node.outputs)
        query = SimpleNamespace(desc=SimpleNamespace(type=trt.DataType.BF16, format=trt.TensorFormat.LINEAR))
        every: Sequence[Any] = [query] * names.index(name) + [
            SimpleNamespace(desc=SimpleNamespace(type=kind, format=layout))
        ]
        return bool(plugin.supports_format_combination(names.index(name), every, len(node.inputs)))

    kinds = trt.DataType
    assert takes("output", kinds.BF16)
    assert not takes("output", kinds.HALF)
    assert takes("key_cache", kinds.INT8)
    assert not takes("key_cache", kinds.INT8, trt.TensorFormat.CHW32)
    assert not takes("key_cache", kinds.BF16)
    assert takes("block_table", kinds.INT32)
    assert takes("k_scale", kinds.FLOAT)
    assert not takes("query", kinds.FLOAT)

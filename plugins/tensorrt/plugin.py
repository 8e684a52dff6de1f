"""PagedAttention as an IPluginV3 in Python: one class with all capabilities.

TensorRT swallows what a callback raises. It prints the exception to stderr and then fails with words of its
own, or, out of get_workspace_size, get_aliased_input and get_fields_to_serialize, goes on and writes a plan
(seen on TensorRT-RTX 1.7). So every error is also recorded in the `Host`. An exception out of `clone` or
`attach_to_context` crashes the process: those only copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

from kvfold.plugins.cuda.attention_spec import ACTIVATION_DTYPES, variants_of
from kvfold.plugins.cuda.calls import workspace_bytes
from kvfold.plugins.tensorrt.attributes import Node
from kvfold.plugins.tensorrt.descriptions import (
    DTYPES,
    UNKNOWN,
    Tensor,
    check_dtypes,
    check_shapes,
    expected_dtype,
    shapes_of,
    spec_of,
)
from kvfold.plugins.tensorrt.fields import write_fields
from kvfold.plugins.tensorrt.host import Host
from kvfold.plugins.tensorrt.node_form import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from kvfold.plugins.tensorrt.saved_node import saved_values

P = ParamSpec("P")
R = TypeVar("R")


@cache
def plugin_class(trt: ModuleType) -> type[PagedAttention]:
    """The plugin for `tensorrt` or `tensorrt_rtx`: each has interfaces of its own, and the same API."""
    return type("PagedAttentionPlugin", (PagedAttention, *_interfaces(trt)), {})


def _interfaces(trt: ModuleType) -> tuple[type, ...]:
    return trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime


def _recorded(
    callback: Callable[Concatenate[PagedAttention, P], R],
) -> Callable[Concatenate[PagedAttention, P], R]:
    """A callback whose errors the host keeps."""

    @wraps(callback)
    def recording(self: PagedAttention, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return callback(self, *args, **kwargs)
        except Exception as error:
            raise self.host.record(self.node.name, error) from error

    return recording


class PagedAttention:
    """The callbacks; `plugin_class` joins them to a TensorRT module's interfaces.

    Args:
        host: of the engine.
        node: which node.
        builds: made for a build. TensorRT may time plugins over whatever bytes its buffers hold, and page
            ids among those lead anywhere, so such an instance launches nothing.
    """

    def __init__(self, host: Host, node: Node, builds: bool) -> None:
        for interface in _interfaces(host.trt):
            interface.__init__(self)  # type: ignore[misc]  # TensorRT's bindings ask for each of them
        self.host = host
        self.node = node
        self.builds = builds
        self.plugin_name = PLUGIN_NAME
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = PLUGIN_NAMESPACE
        self.num_outputs = len(node.outputs)
        _never_free(self)

    def get_capability_interface(self, kind: object) -> PagedAttention:
        """Core, build and runtime: this object is all of them."""
        return self

    def clone(self) -> PagedAttention:
        """A plugin of the same node."""
        return type(self)(self.host, self.node, self.builds)

    def attach_to_context(self, context: object) -> PagedAttention:
        """A copy for an execution context; contexts share the loaded cubins."""
        return self.clone()

    @_recorded
    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        """The query's type and the caches' own."""
        check_dtypes(self.node, [_dtype(kind) for kind in input_types])
        return [input_types[index] for index in self._models_of_outputs()]

    @_recorded
    def get_output_shapes(
        self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any
    ) -> list[Any]:
        """[T, num_heads * head_size] and the caches' own."""
        _, head_size = check_shapes(self.node, [_known(dims) for dims in inputs])
        query, *caches = (inputs[index] for index in self._models_of_outputs())
        width = builder.constant(self.node.attributes.num_heads * head_size)
        return [self.host.trt.DimsExprs([query[0], width]), *caches]

    @_recorded
    def supports_format_combination(
        self, position: int, descriptions: Sequence[Any], num_inputs: int
    ) -> bool:
        """Row-major tensors of the contract's types."""
        name = (*self.node.inputs, *self.node.outputs)[position]
        # No description after `position` may be read.
        query = descriptions[min(position, self.node.inputs.index("query"))].desc
        activation = _dtype(query.type)
        this = descriptions[position].desc
        return (
            this.format == self.host.trt.TensorFormat.LINEAR
            and activation in ACTIVATION_DTYPES
            and _dtype(this.type) == expected_dtype(self.node, name, activation)
        )

    @_recorded
    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """See that a profile's largest shapes are the contract's and every architecture has the kernels."""
        spec = spec_of(self.node, _largest(inputs))
        for architecture in self.host.architectures:
            for variant in variants_of(spec):
                self.host.kernels.find(variant.name, architecture)

    @_recorded
    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """Scratch bytes for every call of a profile."""
        tensors = _largest(inputs)
        spec, shapes = spec_of(self.node, tensors), shapes_of(self.node, tensors)
        return workspace_bytes(self.host.kernels, self.host.architectures, spec, shapes)

    @_recorded
    def get_aliased_input(self, output: int) -> int:
        """Caches are updated in place."""
        return self.node.aliased_input(output)

    @_recorded
    def get_fields_to_serialize(self) -> Any:
        """The node's attributes and its kernels' name; a plan holds nothing else of the plugin."""
        values = saved_values(self.node, self.host.kernels.sha256)
        self._fields = write_fields(self.host.trt, values)  # read after the return
        return self._fields.collection

    def set_tactic(self, tactic: int) -> None:
        """There is one way to run; TensorRT insists on telling which."""

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Nothing to prepare: a call says its shapes."""

    @_recorded
    def enqueue(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        input_addresses: Sequence[int],
        output_addresses: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Put the node's kernels on TensorRT's stream; nothing during a build."""
        if self.builds:
            return
        buffers = dict(zip(self.node.inputs, input_addresses, strict=True))
        for index, (name, address) in enumerate(zip(self.node.outputs, output_addresses, strict=True)):
            alias = self.node.aliased_input(index)
            if alias >= 0 and input_addresses[alias] != address:
                raise self.node.error(f"{name} is not where its input is; caches are updated in place only")
            buffers[name] = address
        tensors = [Tensor(_dtype(description.type), tuple(description.dims)) for description in inputs]
        spec, shapes = spec_of(self.node, tensors), shapes_of(self.node, tensors)
        self.host.launcher.launch(spec, shapes, buffers, workspace, stream)

    def _models_of_outputs(self) -> list[int]:
        """Index of the input that each output has its type from: the query, then the caches."""
        aliases = range(1, len(self.node.outputs))
        return [self.node.inputs.index("query"), *(self.node.aliased_input(index) for index in aliases)]


def _never_free(plugin: object) -> None:
    """Keep a plugin's memory to the very end of the process.

    TensorRT uses plugins without holding their Python objects, and a failed build with two of them frees the
    C++ half itself, so that Python, whenever it frees the rest, frees it again. They are small.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(plugin))


def _dtype(kind: Any) -> str:
    name: str = kind.name
    return DTYPES.get(name, name.lower())


def _known(dims: Iterable[Any]) -> tuple[int, ...]:
    return tuple(size.get_constant_value() if size.is_constant() else UNKNOWN for size in dims)


def _largest(inputs: Iterable[Any]) -> list[Tensor]:
    """A profile's largest shapes."""
    return [Tensor(_dtype(each.desc.type), tuple(each.max)) for each in inputs]

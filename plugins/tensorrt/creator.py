"""The creator that TensorRT's registry holds: fields of a node in, a plugin out."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from kvfold.plugins.tensorrt.attributes import read_node
from kvfold.plugins.tensorrt.fields import declare_fields, read_fields
from kvfold.plugins.tensorrt.host import Host
from kvfold.plugins.tensorrt.node_form import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from kvfold.plugins.tensorrt.plugin import PagedAttention, plugin_class
from kvfold.plugins.tensorrt.saved_node import read_saved_node


class Creator:
    """Makes plugins; `creator_class` joins it to a TensorRT module's interface.

    Attributes:
        host: that new plugins belong to.
    """

    def __init__(self, host: Host) -> None:
        host.trt.IPluginCreatorV3One.__init__(self)
        self.host = host
        self.name = PLUGIN_NAME
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = PLUGIN_NAMESPACE
        self.field_names = declare_fields(host.trt)

    def create_plugin(self, name: str, fields: Any, phase: Any) -> PagedAttention:
        """The plugin of the node `name`.

        Raises:
            KernelError: the node's attributes are not the contract's, or a plan was built with other kernels
                than the host has; the host records it too.
        """
        trt = self.host.trt
        builds = phase == trt.TensorRTPhase.BUILD
        try:
            values = read_fields(trt, fields)
            if builds:
                node = read_node(name, values)
            else:
                node = read_saved_node(name, values, self.host.kernels.sha256)
        except Exception as error:
            raise self.host.record(name, error) from error
        self.host.nodes[name] = node
        return plugin_class(trt)(self.host, node, builds)


@cache
def creator_class(trt: ModuleType) -> type[Creator]:
    """The creator for `tensorrt` or `tensorrt_rtx`."""
    return type("PagedAttentionCreator", (Creator, trt.IPluginCreatorV3One), {})

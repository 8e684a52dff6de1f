"""The form that a PagedAttention node has in a graph for TensorRT.

TensorRT's parser resolves a node to the plugin creator of the same name, version and namespace (the node's
domain). It has no way to pass an absent optional input, so the node lists what it was given: the string
attribute `inputs` holds schema input names, separated by commas, in the order of the node's inputs.
A producer returns the output and its caches, which alias its inputs. A consumer of another layer's cache
writes nothing: it lists no `key`, `value` and `slot_mapping`, its query is not packed, and it has the output
alone. (TensorRT asks a plugin for its number of outputs when nothing but the attributes is known, and refuses
a node with fewer or more.)
Query, key, value and output are float16 or bfloat16; RoPE tables, norm weights, head sinks and scales are
float32; tables, lengths and slots are int32.
"""

from __future__ import annotations

from kvfold.plugins.paged_attention.schema import DOMAIN, OP_TYPE

PLUGIN_NAME = OP_TYPE
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = DOMAIN
INPUTS_ATTRIBUTE = "inputs"
# A node that lists it is a producer.
SLOTS = "slot_mapping"

"""The op as an ONNX schema, so that `onnx.checker` and the exporter know the `kvfold` domain."""

from __future__ import annotations

from dataclasses import MISSING, fields

import onnx
from onnx.defs import OpSchema

from kvfold.plugins.paged_attention.schema import (
    DOMAIN,
    INPUTS,
    OP_TYPE,
    OPSET,
    OPTIONAL_INPUTS,
    OUTPUTS,
    Attributes,
)

_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_TYPES = {
    **dict.fromkeys(("key_cache", "value_cache", "key_cache_out", "value_cache_out"), "T_CACHE"),
    **dict.fromkeys(
        ("cumulative_sequence_length", "past_seqlens", "block_table", "slot_mapping"), "tensor(int32)"
    ),
    **dict.fromkeys(("k_scale", "v_scale"), "tensor(float)"),
}
_ATTRIBUTE_TYPES = {"int": OpSchema.AttrType.INT, "float": OpSchema.AttrType.FLOAT}


def register_schema() -> None:
    """Make the schema known to this process; calling it again changes nothing."""
    if not onnx.defs.has(OP_TYPE, DOMAIN):
        onnx.defs.register_schema(build_schema())


def build_schema() -> OpSchema:
    """The schema, derived from `schema.py`."""
    optional = OpSchema.FormalParameterOption.Optional
    single = OpSchema.FormalParameterOption.Single
    return OpSchema(
        OP_TYPE,
        DOMAIN,
        OPSET,
        doc="Attention over paged KV caches; the contract is plugins/paged_attention/schema.py.",
        inputs=[
            OpSchema.FormalParameter(
                name, _TYPES.get(name, "T"), param_option=optional if name in OPTIONAL_INPUTS else single
            )
            for name in INPUTS
        ],
        outputs=[
            OpSchema.FormalParameter(
                name, _TYPES.get(name, "T"), param_option=single if name == OUTPUTS[0] else optional
            )
            for name in OUTPUTS
        ],
        type_constraints=[
            ("T", _FLOATS, "activations"),
            ("T_CACHE", [*_FLOATS, "tensor(int8)"], "storage of the caches"),
        ],
        attributes=[
            OpSchema.Attribute(
                field.name,
                _ATTRIBUTE_TYPES.get(str(field.type), OpSchema.AttrType.STRING),
                required=field.default is MISSING,
            )
            for field in fields(Attributes)
        ],
    )

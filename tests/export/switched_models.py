"""Tiny random models with the switches of ModelConfig that llama leaves alone, in normal form."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfold.export.checkpoint.weights import expected_shapes
from kvfold.export.model.model_config import ModelConfig
from tests.tiny_model import tiny_config

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.25}
SWITCHED: dict[str, dict[str, object]] = {
    "gemma2": {
        "norm_placement": "both",
        "hidden_act": "gelu_tanh",
        "attention_scale": 0.4,
        "attention_softcap": 3.0,
        "final_softcap": 6.0,
        "sliding_windows": (24, None, 24, None),
    },
    "gemma3": {
        "norm_placement": "both",
        "hidden_act": "gelu_tanh",
        "qk_norm": "head",
        "ropes": ({"theta": 1e4}, {"theta": 1e6, "scaling": {"rope_type": "linear", "factor": 8.0}}),
        "layer_ropes": (0, 1, 0, 1),
        "sliding_windows": (24, None, 24, None),
    },
    "olmo2": {"norm_placement": "post", "qk_norm": "projection"},
    "smollm3": {"ropes": ({"theta": 1e4}, {"partial_rotary_factor": 0.0}), "layer_ropes": (0, 1, 0, 1)},
    "phi4": {"ropes": ({"theta": 1e4, "scaling": YARN, "partial_rotary_factor": 0.75},)},
}


def switched_model(name: str, **changes: object) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights (Hugging Face names) of a model of SWITCHED, large enough that attention matters."""
    config = tiny_config(**(SWITCHED[name] | changes))
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for tensor, shape in expected_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        weights[tensor] = (
            1 + 0.3 * values if tensor.endswith("norm.weight") else values * 2 / shape[-1] ** 0.5
        )
    return config, weights

"""RoPE that a config says in two ways, or with a number that divides nothing."""

from __future__ import annotations

from typing import Any

import pytest

from kvfold.export.checkpoint.gguf_config import config_from_gguf
from kvfold.export.checkpoint.gguf_keys import GgufTensorFacts
from kvfold.export.model.families import config_from_huggingface
from kvfold.plugins.contract.errors import CheckpointError
from tests.export.model.test_families import LLAMA, PHI3

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.5] * 32}
NO_FACTOR = r"factor must be positive, not 0"


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 0}}, NO_FACTOR),
        (
            PHI3 | {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 8192}},
            "original_max_position_embeddings is 4096, and 8192 among the rope parameters",
        ),
    ],
)
def test_a_config_s_value_is_named(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        config_from_huggingface(raw)


def test_two_contexts_that_agree_are_one() -> None:
    inside = {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 4096}}
    outside = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 4096}
    assert config_from_huggingface(PHI3 | inside) == config_from_huggingface(PHI3 | outside)


def test_a_gguf_s_factor_of_zero_is_refused() -> None:
    metadata = {
        "general.architecture": "llama",
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.context_length": 128,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 0.0,
    }
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.factor is 0 with RoPE of type linear"):
        config_from_gguf(metadata, GgufTensorFacts(32, True))

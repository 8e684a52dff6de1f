"""int8 calibration of other families: smoothing is exact wherever norms stand, scales cover turned keys."""

from __future__ import annotations

import pytest
import torch

from kvfold.export.model.decoder import Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.quantize.calibrate import calibrate
from kvfold.plugins.contract.fold_plan import FoldPlan
from tests.export.quantize.test_quantize import ALL_INT8, HELD_OUT, TOKENS
from tests.export.switched_models import SWITCHED, switched_model
from tests.tiny_model import dense_logits


@pytest.mark.parametrize("name", SWITCHED)
def test_smoothing_changes_no_logit_bit_and_scales_cover_the_keys(name: str) -> None:
    config, weights = switched_model(name)
    weights["model.layers.0.mlp.up_proj.weight"][5] *= 50  # something to smooth
    plan = FoldPlan.of(config.attention_shape, "int8")
    calibrated = calibrate(config, weights, plan, TOKENS, ALL_INT8)
    assert not torch.equal(
        calibrated.weights["model.layers.0.mlp.up_proj.weight"], weights["model.layers.0.mlp.up_proj.weight"]
    )
    decoder = Decoder.from_weights(config, plan, calibrated.weights)
    original = Decoder.from_weights(config, plan, weights)
    assert torch.equal(dense_logits(decoder, HELD_OUT), dense_logits(original, HELD_OUT))
    mixer = DenseAttention(config, plan)
    decoder(TOKENS, mixer)
    for layer, cached in mixer.keys_values.items():
        for kind, tensor in zip(("key_scale", "value_scale"), cached, strict=True):
            limit = 127.001 * calibrated.scales[f"{kind}.{layer}"][:, 0]
            assert bool((tensor.abs() <= limit).all()), (kind, layer)
            assert float((tensor.abs().amax((0, 1)) / limit).max()) > 0.5, "the range is not the one seen"

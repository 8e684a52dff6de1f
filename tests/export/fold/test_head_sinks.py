"""Where head sinks start: the logits that bring each head's output nearest to the original's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kvfold.export.fold.fold import fold_weights
from kvfold.export.fold.head_sinks import HeadSinkFit, SinklessAttention, head_sink_name
from kvfold.export.fold.projections import read_output
from kvfold.export.model.decoder import Attention, Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.model.residual_stream import load_block
from kvfold.plugins.contract.errors import CalibrationError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from tests.export.tiny_checkpoints import random_model
from tests.tiny_model import dense_logits, tiny_config, tiny_decoder, tiny_plan

MODEL = random_model("qwen2")
CONFIG = config_from_huggingface(MODEL.config.to_dict())
TOKENS = torch.randint(1, 97, (16, 64), generator=torch.Generator().manual_seed(1))
TOKENS[:, 0] = 0
IDENTITY = build_plan(Preset(preset="identity"), CONFIG.attention_shape)


def parked_weights() -> dict[str, Tensor]:
    """A model whose layer 0 parks its attention on token 0, which has no value: most of it, about logit 8.

    The key is in the slowest channel pair, which RoPE hardly turns within the text.
    """
    weights = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    layer, slowest = "model.layers.0.", CONFIG.head_dim // 2 - 1
    x = functional.rms_norm(weights["model.embed_tokens.weight"][0], (CONFIG.hidden_size,), eps=1e-6)
    x = x * weights[f"{layer}input_layernorm.weight"]
    reads = x / x.square().sum()
    weights[f"{layer}self_attn.k_proj.weight"][slowest :: CONFIG.head_dim] += 8 * reads
    weights[f"{layer}self_attn.q_proj.bias"][slowest :: CONFIG.head_dim] += 4
    values = weights[f"{layer}self_attn.v_proj.weight"]
    values -= torch.outer(values @ x + weights[f"{layer}self_attn.v_proj.bias"], reads)
    return weights


WEIGHTS = parked_weights()


def plan_of(preset: str) -> FoldPlan:
    """Layer 0 sees 16 tokens and has head sinks, layer 1 is global."""
    dials = {"preset": preset, "sliding_window": 16, "sink_size": 0, "head_sink": True, "global_every": 2}
    return build_plan(Preset.model_validate(dials), CONFIG.attention_shape)


def test_the_fit_finds_the_logits_that_the_original_has() -> None:
    generator = torch.Generator().manual_seed(0)
    heads, size = 4, 8
    logits = torch.tensor([-2.0, 0.5, 3.0, 9.0])
    output = torch.randn(heads, 12, size, generator=generator, dtype=torch.float64)
    fit = HeadSinkFit(output, output)
    for _ in range(3):
        student = torch.randn(2, 50, heads, size, generator=generator)
        log_sum_exp = 3 * torch.randn(2, 50, heads, generator=generator) + torch.tensor([0.0, 1.0, 2.0, 5.0])
        teacher = student * torch.sigmoid(log_sum_exp - logits)[..., None]
        fit.add(student.flatten(2), teacher.flatten(2), log_sum_exp)
    torch.testing.assert_close(fit.solve(), logits, atol=0.02, rtol=0)


@pytest.mark.parametrize("length", [20, 150])
def test_a_sink_scales_what_is_computed_without_it(length: int) -> None:
    """The window is 32; a consumer has logits of its own."""
    config = tiny_config(num_hidden_layers=2)
    plan = tiny_plan(config, "character", head_sink=True)
    decoder = tiny_decoder(config, plan)
    hidden = torch.randn(2, length, config.hidden_size, generator=torch.Generator().manual_seed(0))
    dense, sinkless = DenseAttention(config, plan), SinklessAttention(config, plan)
    for layer in range(2):
        attention = decoder.model.get_submodule(f"layers.{layer}.self_attn")
        assert isinstance(attention, Attention) and attention.sinks is not None
        expected, found = (mixer(attention, attention.qkv_proj(hidden)) for mixer in (dense, sinkless))
        share = torch.sigmoid(sinkless.log_sum_exp - attention.sinks)
        torch.testing.assert_close(found * share.repeat_interleave(config.head_dim, dim=-1), expected)


def errors_by_head(plan: FoldPlan, weights: dict[str, Tensor]) -> Tensor:
    """Squared distance of what each head of layer 0 adds to what the original's does."""
    parts = []
    for own, given in ((plan, weights), (IDENTITY, WEIGHTS)):
        block = load_block(CONFIG, own, given, 0)
        hidden = block.attention_input(functional.embedding(TOKENS, WEIGHTS["model.embed_tokens.weight"]))
        heads = DenseAttention(CONFIG, own)(block.self_attn, block.self_attn.qkv_proj(hidden))
        output = read_output(given, 0, CONFIG.head_dim).float()
        heads = heads.reshape(*heads.shape[:2], len(output), -1)
        parts.append(torch.einsum("blhd,hod->blho", heads, output))
    return (parts[0] - parts[1]).square().sum((0, 1, 3))


def test_no_other_logit_brings_a_head_nearer_to_the_original() -> None:
    plan, name = plan_of("horizon"), head_sink_name(0)
    folded = dict(fold_weights(CONFIG, WEIGHTS, plan, TOKENS).weights)
    assert folded.keys() == WEIGHTS.keys() | {name}
    assert all(folded[kept] is WEIGHTS[kept] for kept in WEIGHTS), "horizons change no weight"
    best = errors_by_head(plan, folded)
    for shift in (-0.1, 0.1):
        assert (best < errors_by_head(plan, folded | {name: folded[name] + shift})).all(), shift
    without = errors_by_head(plan, folded | {name: folded[name] - 30})
    assert (best < 0.5 * without).all()  # what is left are values that the window hides


def test_folded_banks_have_head_sinks_too() -> None:
    plan = plan_of("character")
    folded = fold_weights(CONFIG, WEIGHTS, plan, TOKENS)
    assert folded.weights[head_sink_name(0)].shape == (CONFIG.num_attention_heads,)
    assert head_sink_name(1) not in folded.weights
    assert dense_logits(Decoder.from_weights(CONFIG, folded.plan, folded.weights), TOKENS).isfinite().all()


def test_text_that_no_window_cuts_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"layer 0: its window of 16 hides nothing .* of 16 tokens"):
        fold_weights(CONFIG, WEIGHTS, plan_of("horizon"), TOKENS[:, :16])

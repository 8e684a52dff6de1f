"""A tiny model folded to one shared KV head under windows, and settings that heal it within a second."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfold.export.fold.fold import HowToFold, fold_weights
from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.heal.heal_settings import HealSettings
from kvfold.export.heal.healing import Healing
from kvfold.export.heal.training.training_text import TrainingText
from kvfold.export.model.families import config_from_huggingface
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from tests.export.tiny_checkpoints import random_model

TOKENS = torch.randint(0, 97, (24, 48), generator=torch.Generator().manual_seed(1))
TEXT = TrainingText((TOKENS,))
SETTINGS = HealSettings(
    layerwise_tokens=3 * TOKENS.numel(),
    tokens=6 * TOKENS.numel(),
    batch_tokens=4 * 48,
    layerwise_learning_rate=2e-2,
    learning_rate=5e-3,
    warmup_steps=2,
    rank=8,
    checkpoint_seconds=0,
)


def tiny_healing(
    settings: HealSettings = SETTINGS,
    family: str = "llama",
    plan: FoldPlan | None = None,
    head_sink: bool = False,
    zeroed: str | None = None,
) -> tuple[Healing, dict[str, Tensor]]:
    """What is healed (four layers, the last global, one tensor maybe `zeroed`), and its folded weights."""
    model = random_model(family, num_hidden_layers=4)
    config = config_from_huggingface(model.config.to_dict())
    base = dict(model.state_dict())
    if zeroed is not None:
        base[zeroed].zero_()
    dials = {"preset": "character", "sliding_window": 16, "global_every": 4}
    dials |= {"sink_size": 0 if head_sink else 2, "head_sink": head_sink}
    plan = plan or build_plan(Preset.model_validate(dials), config.attention_shape)
    folded = fold_weights(config, base, plan, TOKENS, HowToFold(FoldSettings(rope_slots="fitted")))
    return Healing(config, base, folded.plan, TEXT, settings, calibration=TOKENS), dict(folded.weights)

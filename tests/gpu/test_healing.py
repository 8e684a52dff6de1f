"""Healing on the GPU: the losses of all its steps beside the CPU's, and tokens a second."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from kvfold.export.heal.heal import heal
from kvfold.export.heal.heal_settings import HealSettings
from kvfold.export.heal.healed_adapter import METADATA, load_adapter
from kvfold.export.heal.healing import Healing
from kvfold.export.heal.objective.losses import EndToEndLoss
from kvfold.export.heal.training.optimizer import Optimizer
from kvfold.export.heal.training.passes import Passes
from kvfold.export.heal.training.schedule import ByUpdates
from kvfold.export.heal.training.train import Step, backward, batches
from kvfold.export.heal.training.training_text import TrainingText
from kvfold.export.model.families import config_from_huggingface
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.plan_section import plan_for
from kvfold.plugins.contract.progress import unheard
from tests.export.heal.tiny_healing import SETTINGS, TOKENS, tiny_healing
from tests.gpu.conftest import RecordProperty

# Of SmolLM2-135M; how fast it is does not depend on its weights, so they are random and need no download.
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}
# Two lengths; an update is what a recipe for a GPU takes.
LENGTHS = {2_048: 48, 4_096: 40}
BATCH_TOKENS, WARM, MEASURED = 65_536, 2, 2


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("head_sink", [False, True])
def test_losses_are_the_cpu_s(
    head_sink: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    """Training layer by layer, end to end and in int8 goes as on the CPU, in float32 on both."""
    monkeypatch.setattr("kvfold.export.heal.student.student.matmul_dtype", lambda _: torch.float32)
    settings = SETTINGS.model_copy(update={"int8_tokens": 3 * TOKENS.numel()})
    losses = {}
    for kind in ("cpu", "cuda"):
        monkeypatch.setattr(
            "kvfold.export.heal.student.student.training_device", lambda kind=kind: torch.device(kind)
        )
        healing, folded = tiny_healing(settings, head_sink=head_sink)
        heal(healing, folded, tmp_path / kind, "key", unheard)
        lines = (tmp_path / kind / "loss.jsonl").read_text().splitlines()
        losses[kind] = torch.tensor([json.loads(line)["loss"] for line in lines])
    for kind, values in losses.items():
        record_property(f"first and last loss, {kind}", f"{values[0]:.4f}, {values[-1]:.4f}")
    difference = ((losses["cuda"] - losses["cpu"]).abs() / losses["cpu"]).max()
    record_property("largest relative difference of a loss", float(difference))
    assert difference < 0.02


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("recipe", "in_int8"), [("compact", False), ("character", False), ("compact", True)])
def test_speed(recipe: str, in_int8: bool, record_property: RecordProperty) -> None:
    """Tokens a second of step B, and of step C, at SmolLM2's sizes; the original answers meanwhile."""
    text = random_text(LENGTHS)
    speed, tokens_a_pass = speed_of(recipe, text, BATCH_TOKENS, WARM, MEASURED, in_int8)
    record_property("tokens/s", round(speed))
    record_property("tokens a pass", tokens_a_pass)
    record_property("most memory in use, GB", round(torch.cuda.max_memory_allocated() / 1e9, 1))


def random_text(lengths: dict[int, int]) -> TrainingText:
    """So many sequences of each length."""
    generator = torch.Generator().manual_seed(0)
    return TrainingText(
        tuple(
            torch.randint(0, SMOLLM2["vocab_size"], (count, length), generator=generator)
            for length, count in lengths.items()
        )
    )


def speed_of(
    name: str, text: TrainingText, batch_tokens: int, warm: int, measured: int, in_int8: bool = False
) -> tuple[float, int]:
    """Tokens a second of the updates after the first `warm` ones, and the size that a pass came to."""
    described = LlamaConfig(architectures=["LlamaForCausalLM"], **SMOLLM2)  # type: ignore[no-untyped-call]
    config = config_from_huggingface(described.to_dict())
    base = dict(LlamaForCausalLM(described).state_dict())  # type: ignore[no-untyped-call]
    recipe = load_recipe(name)
    assert recipe.adapter is not None
    with safe_open(recipe.adapter, "pt") as file:
        own_base = json.loads(file.metadata()[METADATA])["base"]
    adapter = load_adapter(recipe.adapter, own_base, plan_for(recipe.plan, config.attention_shape))
    form = {name: x if name.endswith(":factors") else x.float() for name, x in adapter.tensors.items()}
    healing = Healing(config, base, adapter.plan, text, HealSettings(), calibration=text.parts[0][:1, :1_024])
    student = healing.student(form, healing.deploy(form) if in_int8 else None)
    loss = EndToEndLoss(healing.teacher(), student, healing.head, text, scored=0.25, seed=0)
    step = Step("speed", ByUpdates(1), 1e-4, 0, text, student.parameters, loss)
    optimizer, passes, seen, start = Optimizer(student.parameters), Passes.on(student.device), 0, 0.0
    for update, rows in enumerate(batches(text.lengths, batch_tokens, seed=0)):
        if update == warm:
            _wait(student.device)
            start = time.perf_counter()
        if update == warm + measured:
            break
        value = backward(step, rows, passes, optimizer)
        optimizer.step(1e-5)
        assert 0 < value < 100
        seen += int(text.lengths[rows].sum()) if update >= warm else 0
    _wait(student.device)
    return seen / (time.perf_counter() - start), passes.tokens


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

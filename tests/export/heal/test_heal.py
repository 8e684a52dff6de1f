"""Laws of healing: it lowers the loss, changes nothing else, and a killed run ends as if it had not been."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvfold.export.heal.heal import heal
from kvfold.export.heal.healed_adapter import merge
from kvfold.export.heal.healing import STEPS, Healing
from kvfold.export.heal.student.trainable import trained_names
from kvfold.export.heal.training.journal import Journal, Snapshot
from kvfold.export.model.decoder import Decoder
from kvfold.plugins.contract.errors import HealingError, PlanError
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.progress import unheard
from tests.export.heal.tiny_healing import SETTINGS, TOKENS, tiny_healing
from tests.tiny_model import dense_logits


def losses(folder: Path, step: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["step"] == step]


def divergence(healing: Healing, weights: Mapping[str, Tensor]) -> float:
    """Mean KL(original || model) over the text, of which training scored a quarter."""
    identity = build_plan(Preset(preset="identity"), healing.config.attention_shape)
    teacher = dense_logits(Decoder.from_weights(healing.config, identity, healing.base), TOKENS).log_softmax(
        -1
    )
    student = dense_logits(Decoder.from_weights(healing.config, healing.plan, weights), TOKENS).log_softmax(
        -1
    )
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


@pytest.mark.parametrize(
    ("family", "rank", "head_sink"),
    [
        ("llama", 8, False),
        ("llama", None, False),
        ("qwen2", 8, False),
        ("qwen2", None, False),
        ("llama", 8, True),
        ("qwen2", None, True),
    ],
)
def test_healing_lowers_the_loss_and_changes_only_what_folding_changed(
    tmp_path: Path, family: str, rank: int | None, head_sink: bool
) -> None:
    settings = SETTINGS.model_copy(update={"rank": rank})
    healing, folded = tiny_healing(settings, family, head_sink=head_sink)
    before = {name: tensor.clone() for name, tensor in {**healing.base, **folded}.items()}
    adapter = heal(healing, folded, tmp_path, "key", unheard)
    healed = merge(healing.config, healing.base, healing.plan, adapter)
    assert healed.keys() == folded.keys()
    trained = trained_names(healing.config, healing.plan, healed)
    for name in healed:
        assert torch.equal(healed[name], before[name]) == (name not in trained), name
    for step in ("layerwise", "end_to_end"):
        epochs = torch.tensor(losses(tmp_path, step)).reshape(-1, 6).mean(1)  # 6 updates go over the text
        assert epochs[-1] < 0.9 * epochs[0]
    assert divergence(healing, healed) < 0.9 * divergence(healing, folded)


@pytest.mark.parametrize("projection", ["q_proj", "v_proj", "o_proj"])
def test_a_layer_that_a_model_was_grown_by_is_healed_with_the_others(tmp_path: Path, projection: str) -> None:
    """Its projection begins at zero: there is no size to measure a change or an error by."""
    settings = SETTINGS.model_copy(update={"tokens": TOKENS.numel(), "layerwise_tokens": TOKENS.numel()})
    healing, folded = tiny_healing(settings, zeroed=f"model.layers.0.self_attn.{projection}.weight")
    adapter = heal(healing, folded, tmp_path, "key", unheard)
    assert all(tensor.isfinite().all() for tensor in adapter.values())


def test_the_log_is_cut_back_to_the_snapshot(tmp_path: Path) -> None:
    """What came after it is made again; a kill may leave half a line."""
    journal = Journal(tmp_path / "heal", "key")
    journal.begin("layerwise", {})
    for update in (1, 2, 3):
        journal.log("layerwise", update, 0.5, 1e-3)
    journal.log("end_to_end", 1, 1.5, 1e-3)
    snapshot = journal.save(Snapshot("key", "layerwise", {}, updates=2))
    with (tmp_path / "heal" / "loss.jsonl").open("a") as file:
        file.write('{"step": "end_to_end", "upd')
    journal.rewind(snapshot, STEPS)
    lines = (tmp_path / "heal" / "loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [1, 2]


def test_layers_that_no_fold_touches_stay_frozen() -> None:
    healing, _ = tiny_healing()
    dials = {"preset": "horizon", "sliding_window": 16, "global_every": 2}
    plan = build_plan(Preset.model_validate(dials), healing.config.attention_shape)
    layers = {name.split(".")[2] for name in trained_names(healing.config, plan, healing.base)}
    assert layers == {"0", "2", "weight"}  # "weight" is model.norm's
    assert not any(".mlp." in name for name in trained_names(healing.config, plan, healing.base))


def test_a_plan_that_folds_nothing_is_refused(tmp_path: Path) -> None:
    healing, _ = tiny_healing()
    identity = build_plan(Preset(preset="identity"), healing.config.attention_shape)
    with pytest.raises(PlanError, match="nothing to heal"):
        heal(tiny_healing(plan=identity)[0], healing.base, tmp_path, "key", unheard)


def after_three_of(part: str) -> Callable[[str], bool]:
    """Accepts the third line that names this part."""
    reports = count()
    return lambda line: part in line and next(reports) == 2


def test_divergence_is_named(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"layerwise_learning_rate": 1e30, "clip": 1e30})
    healing, folded = tiny_healing(settings)
    with pytest.raises(HealingError, match=r"layerwise, update [2-9]: .* lower the learning rate"):
        heal(healing, folded, tmp_path, "key", unheard)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    settings = SETTINGS.model_copy(update={"int8_tokens": 3 * TOKENS.numel()})
    (folder / "job").write_bytes(pickle.dumps(tiny_healing(settings)))
    run_until(folder / "job", folder, lambda line: False)
    return folder


def run_until(job: Path, folder: Path, stop: Callable[[str], bool]) -> None:
    """Heal in another process; SIGKILL it once it prints a line that `stop` accepts."""
    command = [sys.executable, "-m", "tests.export.heal.heal_worker", str(job), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if stop(line):
                process.kill()
                return
    assert process.returncode == 0


def test_killed_in_each_part_it_ends_with_the_same_bytes(tmp_path: Path, uninterrupted: Path) -> None:
    """SIGKILL amid step A, amid step B and amid step C, then to the end."""
    job = uninterrupted / "job"
    for part in ("layerwise", "end_to_end", "int8 loss"):
        run_until(job, tmp_path, after_three_of(part))
        assert not (tmp_path / "adapter.safetensors").exists()
    run_until(job, tmp_path, lambda line: False)
    for name in ("adapter.safetensors", "work/loss.jsonl"):
        assert (tmp_path / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["loss.jsonl", "snapshot.pt"]


def test_a_snapshot_of_other_settings_is_not_used(tmp_path: Path) -> None:
    healing, folded = tiny_healing(SETTINGS.model_copy(update={"layerwise_tokens": 48 * 8, "tokens": 0}))
    first = heal(healing, folded, tmp_path, "one", unheard)
    notes: list[str] = []
    heal(healing, folded, tmp_path, "one", lambda fraction, note="": notes.append(note))
    assert not notes, "a finished training has nothing left to do"
    again = heal(healing, folded, tmp_path, "two", lambda fraction, note="": notes.append(note))
    assert notes
    assert all(torch.equal(first[name], again[name]) for name in first)

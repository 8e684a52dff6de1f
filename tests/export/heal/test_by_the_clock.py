"""Training by the clock: it ends when time does, a kill costs no time, and the better weights are kept."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from kvfold.export.heal.heal import heal
from kvfold.export.heal.heal_settings import HealSettings
from kvfold.export.heal.healing import Healing
from kvfold.export.heal.judgement import judge
from kvfold.export.heal.training.journal import Journal, Snapshot
from kvfold.export.heal.training.schedule import Clock
from kvfold.export.heal.training.training_text import HELD_OUT_TOKENS, TrainingText
from kvfold.export.quantize.calibrate import calibrate
from kvfold.plugins.contract.errors import HealingError
from kvfold.plugins.contract.progress import unheard
from tests.export.heal.tiny_healing import SETTINGS, TOKENS, tiny_healing

TICK = 0.01
SECONDS = 1.5


class Ticks:
    """A clock that goes on whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += TICK
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr("kvfold.export.heal.training.schedule.time", ticks)
    return ticks


def settings(**changes: Any) -> HealSettings:
    """Step B takes about as long as step C, as its tokens cost half as much."""
    dials = {"seconds": SECONDS, "layerwise_tokens": 0, "tokens": 2, "int8_tokens": 1, "learning_rate": 5e-3}
    return SETTINGS.model_copy(update={**dials, "int8_learning_rate": 1e-3, **changes})


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]


def test_it_ends_when_time_does_and_is_judged_by_text_that_it_does_not_see(
    tmp_path: Path, ticks: Ticks
) -> None:
    healing, folded = tiny_healing(settings())
    fractions: list[float] = []
    heal(healing, folded, tmp_path, "key", lambda fraction, note="": fractions.append(fraction))
    assert SECONDS * 0.8 < ticks.now < SECONDS * 1.1
    assert fractions == sorted(fractions) and 0.8 < fractions[-1] <= 1
    lines = log(tmp_path)
    steps = [line["step"] for line in lines]
    assert list(dict.fromkeys(steps)) == ["before", "end_to_end", "int8", "after"]
    for step, peak in (("end_to_end", 5e-3), ("int8", 1e-3)):
        rates = [line["rate"] for line in lines if line["step"] == step]
        assert max(rates) < peak and rates[-1] < 0.3 * peak, step
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_killed_run_goes_on_with_the_time_that_it_has_left(tmp_path: Path, ticks: Ticks) -> None:
    healing, folded = tiny_healing(settings())

    def kill(fraction: float, note: str = "") -> None:
        if fraction > 0.5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        heal(healing, folded, tmp_path, "key", kill)
    ticks.now += 1000
    heal(healing, folded, tmp_path, "key", unheard)
    assert SECONDS * 0.8 < ticks.now - 1000 < SECONDS * 1.2
    rates = [line["rate"] for line in log(tmp_path) if line["step"] == "end_to_end"]
    falling = rates[3:]  # after the warm-up
    assert falling == sorted(falling, reverse=True) and falling[-1] < 0.3 * 5e-3


def test_the_int8_end_has_its_calibration_beside_its_time(
    tmp_path: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three calibrations of a second each, two of them in what is left after the first judgement."""

    def slow(*arguments: Any) -> Any:
        ticks.now += 1
        return calibrate(*arguments)

    monkeypatch.setattr("kvfold.export.heal.healing.calibrate", slow)
    healing, folded = tiny_healing(settings(seconds=6, warmup_steps=0))
    heal(healing, folded, tmp_path, "key", unheard)
    assert 6 * 0.97 < ticks.now < 6 * 1.03
    lines = log(tmp_path)
    updates = {step: [x for x in lines if x["step"] == step] for step in ("end_to_end", "int8")}
    for step, peak in (("end_to_end", 5e-3), ("int8", 1e-3)):
        rates = [line["rate"] for line in updates[step]]
        assert rates[0] > 0.99 * peak and rates[-1] < 0.15 * peak, step
    # Both steps have equal shares of the time, and on this clock an update takes as long in either.
    counts = [len(lines) for lines in updates.values()]
    assert abs(counts[0] - counts[1]) <= 0.1 * max(counts)


def test_a_judgement_is_expected_to_take_what_its_median_pass_takes() -> None:
    """Of 5 passes the first of each length compiles."""
    ticks = Ticks()
    text = TrainingText((torch.zeros(6, 1_024), torch.zeros(4, 2_048)))
    seconds = iter([30.0, 1.0, 1.0, 20.0, 2.0, 2.0, 2.0])

    def loss(rows: torch.Tensor) -> torch.Tensor:
        ticks.now += next(seconds)
        return rows.float().mean()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvfold.export.heal.training.schedule.time", ticks)
        mean, again = judge(loss, text, Clock(), unheard)
    assert mean == pytest.approx((15 * 1_024 + 30 * 2_048) / text.tokens)
    assert again == pytest.approx(3 * 1.0 + 4 * 2.0, abs=8 * TICK)


@pytest.mark.usefixtures("ticks")
def test_what_training_made_worse_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start is fitted once; a process that goes on after a kill has it from the one before."""
    healing, folded = tiny_healing(settings(seconds=0.7, int8_tokens=0, learning_rate=0.3, clip=1e9))
    start = heal(replace(healing, settings=no_training()), folded, tmp_path / "start", "key", unheard)

    def kill(fraction: float, note: str = "") -> None:
        if note.startswith("end_to_end"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        heal(healing, folded, tmp_path / "worse", "key", kill)
    monkeypatch.delattr("kvfold.export.heal.heal.adapter_form")
    found = heal(healing, folded, tmp_path / "worse", "key", unheard)
    before, after = (line["loss"] for line in log(tmp_path / "worse") if line["rate"] == 0)
    assert after > before
    assert all(torch.equal(found[name], start[name]) for name in start)


@pytest.mark.usefixtures("ticks")
@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_start_that_cannot_be_read_any_more_is_fitted_again(
    left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost, empty or cut: what training made worse is not kept all the same."""
    healing, folded = tiny_healing(settings(seconds=0.7, int8_tokens=0, learning_rate=0.3, clip=1e9))
    start = heal(replace(healing, settings=no_training()), folded, tmp_path / "start", "key", unheard)
    kept = tmp_path / "worse" / "start.pt"

    def damage(snapshot: Snapshot, journal: Journal) -> Snapshot:
        if snapshot.step == "after":
            kept.unlink() if left is None else os.truncate(kept, left)
        return save(journal, snapshot)

    save = Journal.save
    monkeypatch.setattr(Journal, "save", lambda journal, snapshot: damage(snapshot, journal))
    found = heal(healing, folded, tmp_path / "worse", "key", unheard)
    assert all(torch.equal(found[name], start[name]) for name in start)


def test_opening_the_original_is_not_part_of_judging(
    tmp_path: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened once, so the last judgement does not wait for it, and training has that time."""

    def slow(healing: Healing) -> Any:
        ticks.now += 2
        return teacher(healing)

    teacher = Healing.teacher
    monkeypatch.setattr(Healing, "teacher", slow)
    healing, folded = tiny_healing(settings(seconds=6, int8_tokens=0))
    heal(healing, folded, tmp_path, "key", unheard)
    assert 6 * 0.97 < ticks.now < 6 * 1.03


def no_training() -> HealSettings:
    return SETTINGS.model_copy(update={"layerwise_tokens": 0, "tokens": 0})


@pytest.mark.usefixtures("ticks")
def test_too_little_time_or_text_is_refused(tmp_path: Path) -> None:
    healing, folded = tiny_healing(settings(seconds=2 * TICK))
    with pytest.raises(HealingError, match=r"heal\.seconds is 0\.02, yet .* raise it"):
        heal(healing, folded, tmp_path / "time", "key", unheard)
    one = TrainingText((TOKENS[:1],))
    healing = replace(healing, settings=settings(), text=one)
    with pytest.raises(HealingError, match="it has one sequence; ask for more"):
        heal(healing, folded, tmp_path / "text", "key", unheard)


@pytest.mark.parametrize("seconds", [0, -5, float("inf"), float("nan"), "soon"])
def test_silly_times_are_refused(seconds: object) -> None:
    with pytest.raises(ValidationError, match="seconds"):
        HealSettings.model_validate({"seconds": seconds})


def test_time_that_no_step_gets_is_refused() -> None:
    with pytest.raises(ValidationError, match="all of these are 0"):
        HealSettings(seconds=60, layerwise_tokens=0, tokens=0)


def test_what_is_held_out_is_a_small_part_of_each_length() -> None:
    text = TrainingText((torch.zeros(640, 48), torch.ones(1_000, 1_000), torch.ones(1, 8)))
    rest, held = text.hold_out()
    assert [len(part) for part in rest.parts] == [620, 979, 1]
    assert [len(part) for part in held.parts] == [20, 21] and held.tokens < HELD_OUT_TOKENS

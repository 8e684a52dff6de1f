"""Memory does not grow with the model where it is folded, calibrated and searched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.export.weights.peak_memory import check_growth

FOLDING = """
from kvfold.export.fold.fold import fold_weights
from kvfold.export.quantize.calibrate import calibrate
from kvfold.export.weights.layer_journal import LayerJournal
from kvfold.plugins.contract.plan_presets import Preset, build_plan

dials = {"preset": arguments[0], "sliding_window": 64, "sink_size": 4, "global_every": 3}
plan = build_plan(Preset.model_validate(dials), config.attention_shape)


def work_on_it():
    folded = fold_weights(config, weights, plan, tokens, journal=LayerJournal(work / "fold", "key", 0))
    journal = LayerJournal(work / "int8", "key", 0)
    calibrated = calibrate(config, folded.weights, folded.plan, tokens, journal=journal)
    assert all(calibrated.weights[name].numel() for name in calibrated.weights)

"""
SEARCHING = """
from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.search.costs import Change
from kvfold.export.search.examine import Examination
from kvfold.export.search.measure_changes import Laboratory, measure_changes, measure_plan
from kvfold.export.search.question import Question
from kvfold.export.search.search_settings import SearchSettings

dials = {"sliding_windows": (16, 24), "measured_window": 16, "prompt_length": 128}

def work_on_it():
    examination = Examination(config, weights, tokens, [Question(tokens[0].numpy(), 120)])
    laboratory = Laboratory(examination, tokens, FoldSettings(), SearchSettings(**dials))
    changes = [Change("bank", (0, 1)), Change("int8", (2,))]
    assert len(list(measure_changes(laboratory, changes))) == 2
    plan = examination.identity.with_layers((0, 1), donor=0, num_key_value_heads=1)
    measure_plan(laboratory, plan.with_layers(range(2, config.num_hidden_layers), num_key_value_heads=2))

"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc; it would be bounded")
@pytest.mark.parametrize("preset", ["horizon", "character"])
def test_folding_and_calibrating_hold_a_layer(tmp_path: Path, preset: str) -> None:
    """`horizon` changes no weight in folding, `character` heads and shares of every layer."""
    check_growth(tmp_path, FOLDING, preset)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc; it would be bounded")
def test_searching_a_plan_holds_a_layer(tmp_path: Path) -> None:
    check_growth(tmp_path, SEARCHING)

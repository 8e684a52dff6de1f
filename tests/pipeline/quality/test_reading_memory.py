"""Memory does not grow with the model where it is validated and evaluated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.export.weights.peak_memory import check_growth

READING = """
from kvfold.export.layerwise.layerwise_model import LayerwiseModel
from kvfold.export.weights.changed_weights import ChangedWeights
from kvfold.pipeline.quality.likelihood import measure_divergences, measure_perplexity
from kvfold.pipeline.quality.load_subjects import Heads, LayerwiseSubject
from kvfold.pipeline.quality.subject_names import BFLOAT16, ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.quality.validate.validate import compare
from kvfold.plugins.contract.fold_plan import FoldPlan

plan, heads = FoldPlan.of(config.attention_shape), Heads()
folded = ChangedWeights(weights, {"model.layers.0.mlp.down_proj.weight": torch.zeros(512, 2_560)})


def subject(name, weights, dtype=None):
    return LayerwiseSubject(name, LayerwiseModel(config, plan, weights, dtype), heads)


def work_on_it():
    # The engine is no matter of this test: another model stands in for it.
    subjects = subject(ORIGINAL, weights), subject(FOLDED, folded), subject(ENGINE, folded)
    windows = tokens.numpy()
    assert compare(windows, subjects, "", lambda fraction: None).tokens == tokens.numel()
    others = subject(BFLOAT16, weights, torch.bfloat16), *subjects[1:]
    _, losses = measure_divergences(windows, subjects[0], others, lambda tokens: None)
    measure_perplexity(windows, 64, subjects, lambda tokens: None, losses)

"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc; it would be bounded")
def test_subjects_hold_a_layer(tmp_path: Path) -> None:
    check_growth(tmp_path, READING)

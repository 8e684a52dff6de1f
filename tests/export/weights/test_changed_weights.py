"""Weights by reference: what is asked for is read, and nothing else."""

from __future__ import annotations

import torch

from kvfold.export.weights.changed_weights import ChangedWeights, EditedWeights, ScaledWeights
from tests.export.weights.killed_weights import KilledWeights


def test_own_tensors_stand_over_the_base_s_and_dropped_ones_are_gone() -> None:
    base = KilledWeights(
        {name: torch.full((2,), value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    )
    changed = ChangedWeights(base, {"b": torch.full((2,), 5.0).half(), "new": torch.zeros(1)}, {"c"})
    assert list(changed) == ["a", "b", "new"] and len(changed) == 3
    assert "a" in changed and "c" not in changed and "d" not in changed
    assert not base.read, "names cost no reading"
    assert changed["b"].tolist() == [5, 5] and changed["b"].dtype == torch.float32
    assert changed.get("c") is None
    assert changed["a"].tolist() == [1, 1] and base.read == ["a"]


def test_edited_weights_give_up_a_layer_that_is_final() -> None:
    edited = EditedWeights({"x.1.a": torch.zeros(1), "x.10.a": torch.zeros(1)})
    edited["x.1.a"], edited["x.10.a"] = torch.ones(1), torch.ones(1)
    assert edited.take("x.1.").keys() == {"x.1.a"}
    assert edited["x.1.a"].item() == 0 and edited["x.10.a"].item() == 1


def test_rows_and_columns_are_scaled_on_access() -> None:
    weights = {"w": torch.ones(2, 3), "b": torch.ones(2), "other": torch.ones(1)}
    factors = {
        "w:rows": torch.tensor([2.0, 4.0]),
        "w:columns": torch.tensor([1.0, 0.5, 8.0]),
        "b:rows": torch.tensor([2.0, 4.0]),
    }
    scaled = ScaledWeights(weights, factors)
    assert scaled["w"].tolist() == [[2, 1, 16], [4, 2, 32]]
    assert scaled["b"].tolist() == [2, 4] and scaled["other"] is weights["other"]
    assert scaled.keys() == weights.keys()

"""GPTQ: blocks that give nearly a linear's products on inputs like those that were seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvfold.export.quantize.int4.blocks import Blocks
from kvfold.export.quantize.int4.fit_blocks import fit_blocks, round_codes
from kvfold.export.quantize.int4.gptq import DAMPING, gptq
from kvfold.plugins.int4_linear.packing import dequantize_weight, quantize_weight

GENERATOR = torch.Generator().manual_seed(0)
# Inputs that go along few directions, as a model's do.
MIXING = torch.randn(40, 40, generator=GENERATOR) * torch.exp(torch.randn(40, generator=GENERATOR))
SEEN, UNSEEN = (torch.randn(600, 40, generator=GENERATOR) @ MIXING for _ in range(2))
WEIGHT = torch.randn(24, 40, generator=GENERATOR)


def error(x: Tensor, values: Tensor) -> float:
    return float((x @ (values - WEIGHT).T).norm() / (x @ WEIGHT.T).norm())


def test_it_costs_less_than_rounding_to_nearest_on_inputs_that_it_has_not_seen() -> None:
    """The last block of a row is of 8 inputs."""
    nearest = torch.from_numpy(dequantize_weight(quantize_weight(WEIGHT.numpy())))
    blocks = gptq(WEIGHT, SEEN.T @ SEEN)
    assert error(UNSEEN, blocks.values) < 0.7 * error(UNSEEN, nearest)


def test_inputs_that_know_nothing_of_each_other_give_the_nearest_codes() -> None:
    blocks = gptq(WEIGHT, torch.eye(40))
    for start in (0, 32):
        values = WEIGHT[:, start : start + 32].T
        scale, minimum = fit_blocks(values, torch.ones(len(values)))
        codes = round_codes(values, scale, minimum)
        assert torch.equal(blocks.codes[:, start : start + 32].T, codes.to(torch.uint8))


def test_text_of_fewer_tokens_than_inputs_is_enough() -> None:
    few = SEEN[:5]
    blocks = gptq(WEIGHT, few.T @ few)
    assert error(few, blocks.values) < error(few, gptq(WEIGHT, torch.eye(40)).values)
    assert bool(torch.isfinite(blocks.values).all())


def test_the_number_of_rows_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, weight = SEEN.T @ SEEN, WEIGHT.clone()
    whole = gptq(weight, moment.clone())
    monkeypatch.setattr("kvfold.export.quantize.int4.gptq.ROWS", 23)
    parts = gptq(weight, moment.clone())
    assert torch.equal(whole.codes, parts.codes) and torch.equal(weight, WEIGHT)


def test_an_input_that_never_moved_is_no_error() -> None:
    x = SEEN.clone()
    x[:, 7] = 0
    assert bool(torch.isfinite(gptq(WEIGHT, x.T @ x).values).all())
    silent: Blocks = gptq(WEIGHT, torch.zeros(40, 40))
    assert bool(torch.isfinite(silent.values).all()) and DAMPING > 0


def test_a_fitted_block_is_no_worse_than_one_over_its_whole_range() -> None:
    values = WEIGHT[:, :32].T.contiguous()
    scale, minimum = fit_blocks(values, torch.ones(32))
    fitted = round_codes(values, scale, minimum) * scale + minimum
    spread = torch.from_numpy(dequantize_weight(quantize_weight(WEIGHT[:, :32].numpy()))).T
    assert float((fitted - values).norm()) < float((spread - values).norm())
    assert torch.equal(scale, scale.half().float()) and torch.equal(minimum, minimum.half().float())


def test_a_block_of_one_value_is_that_value() -> None:
    scale, minimum = fit_blocks(torch.full((32, 1), 0.375), torch.ones(32))
    assert float(round_codes(torch.full((32, 1), 0.375), scale, minimum)[0] * scale + minimum) == 0.375

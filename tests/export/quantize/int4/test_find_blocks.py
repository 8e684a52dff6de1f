"""Blocks that a GGUF file has are found in its float values, to the bit; no others are."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from kvfold.export.quantize.int4.blocks import Blocks
from kvfold.export.quantize.int4.find_blocks import find_blocks
from kvfold.export.quantize.int4.round_weight import round_weight

KINDS = [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1]


def matrix(rows: int = 48, columns: int = 96) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05


def rounded(kind: GGMLQuantizationType, weight: Tensor) -> Tensor:
    """What a GGUF file of this kind gives back."""
    return torch.from_numpy(np.array(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_a_gguf_tensor_are_found_and_exact(kind: GGMLQuantizationType) -> None:
    weight = rounded(kind, matrix())
    blocks, whole = find_blocks(weight)
    assert bool(whole.all()) and torch.equal(blocks.values, weight)
    assert (blocks.minimum is None) == (kind == GGMLQuantizationType.Q4_0)


@pytest.mark.parametrize("kind", KINDS)
def test_powers_of_two_of_rows_and_of_whole_blocks_leave_them_exact(kind: GGMLQuantizationType) -> None:
    rows = torch.exp2(torch.arange(48) % 7 - 3)[:, None]
    columns = torch.exp2(torch.tensor([-2.0, 0.0, 3.0])).repeat_interleave(32)
    weight = rounded(kind, matrix()) * rows * columns
    blocks, whole = find_blocks(weight)
    assert bool(whole.all()) and torch.equal(blocks.values, weight)


def test_a_power_of_two_within_a_block_is_no_block_any_more() -> None:
    weight = rounded(GGMLQuantizationType.Q4_1, matrix())
    weight[5, 40] *= 2
    blocks, whole = find_blocks(weight)
    assert (~whole).nonzero().tolist() == [[5]]
    assert torch.equal(blocks.values[whole], weight[whole])


def test_blocks_that_use_few_codes_and_both_kinds_side_by_side_are_found() -> None:
    """Constant blocks, and codes 2 to 9 alone, beside others of either kind."""
    weight = torch.cat([rounded(kind, matrix()) for kind in KINDS])
    weight[3, :32] = 0
    weight[4, 32:64] = 0.375
    codes = torch.randint(2, 10, (32,), generator=torch.Generator().manual_seed(1)).float()
    weight[60, :32] = torch.tensor(0.0123).half().float() * codes + torch.tensor(-0.077).half().float()
    blocks, whole = find_blocks(weight)
    assert bool(whole.all()) and torch.equal(blocks.values, weight)


def test_the_number_of_rows_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows have no minima where they stand alone; none of the others' blocks has any at all."""
    weight = torch.cat([*(rounded(kind, matrix()) for kind in KINDS), matrix()])
    expected, expected_rows = find_blocks(weight)
    monkeypatch.setattr("kvfold.export.quantize.int4.find_blocks.ROWS", 48)
    blocks, rows = find_blocks(weight)
    assert torch.equal(rows, expected_rows) and rows.tolist() == [True] * 96 + [False] * 48
    assert torch.equal(blocks.values[rows], weight[rows]) and torch.equal(expected.values[rows], weight[rows])


def test_floats_of_another_origin_are_in_no_blocks() -> None:
    assert not bool(find_blocks(matrix())[1].any())
    assert not bool(find_blocks(matrix().bfloat16().float())[1].any())
    assert not bool(find_blocks(rounded(GGMLQuantizationType.Q8_0, matrix()))[1].any())


@pytest.mark.parametrize("columns", [96, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_holds_of_blocks_gives_them_back(kind: GGMLQuantizationType, columns: int) -> None:
    blocks, _ = find_blocks(rounded(kind, matrix())[:, :columns])
    read = Blocks.of("linear", columns, blocks.tensors("linear"))
    assert torch.equal(read.values, blocks.values)
    assert sum(each.numel() * each.element_size() for each in blocks.tensors("").values()) == 48 * (
        columns // 2 + (2 if blocks.minimum is None else 4) * -(-columns // 32)
    )


def test_rows_that_have_blocks_keep_them_beside_rows_that_are_rounded() -> None:
    weight = rounded(GGMLQuantizationType.Q4_1, matrix())
    weight[10:20] += 0.001 * matrix()[10:20]
    blocks, exact = round_weight(weight, torch.eye(96))
    assert not exact
    kept = [row for row in range(48) if row not in range(10, 20)]
    assert torch.equal(blocks.values[kept], weight[kept])
    assert 0 < float((blocks.values - weight)[10:20].norm() / weight[10:20].norm()) < 0.1

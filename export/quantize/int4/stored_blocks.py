"""Blocks of the linears that run in 4 bits: in files of calibration, or in the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kvfold.export.quantize.int4.blocks import CODES, Blocks
from kvfold.export.quantize.int4.find_blocks import find_blocks
from kvfold.export.quantize.precision import Quantization
from kvfold.plugins.contract.errors import ExportError


@dataclass(frozen=True)
class StoredBlocks:
    """Blocks by linear, read, or found in its weight, on each access.

    Attributes:
        quantization: which linears run in 4 bits.
        tensors: blocks of those whose weights are in none of their own, as `Blocks.tensors` has them.
    """

    quantization: Quantization
    tensors: Mapping[str, Tensor]

    def is_symmetric(self, linear: str) -> bool:
        """Whether a linear's blocks have no minima."""
        return self.quantization.linears[linear].symmetric

    def of(self, linear: str, weight: Tensor) -> Blocks:
        """Blocks of a linear; weight float32 [out, in] as it is deployed.

        Raises:
            ExportError: none are stored, and the weight is in no blocks of its own.
        """
        if linear + CODES in self.tensors:
            return Blocks.of(linear, weight.shape[1], self.tensors)
        blocks, whole = find_blocks(weight)
        if not bool(whole.all()) or (blocks.minimum is None) != self.is_symmetric(linear):
            raise ExportError(f"{linear} is to run in 4 bits and has no blocks; run `kvfold export` again")
        return blocks


NO_BLOCKS = StoredBlocks(Quantization(linears={}), {})

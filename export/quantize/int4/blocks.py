"""A weight in blocks of 4 bits as tensors, and how it is kept in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from kvfold.plugins.int4_linear.packing import BlockWeight
from kvfold.plugins.int4_linear.schema import BLOCK, CENTER

CODES, SCALE, MINIMUM = ":codes", ":scale", ":minimum"


@dataclass(frozen=True)
class Blocks:
    """A matrix [out, in] in blocks of 32 inputs of one output; `BlockWeight` in PyTorch.

    Attributes:
        codes: uint8 [out, in], 0 to 15.
        scale: float16 [out, ceil(in / 32)].
        minimum: float16, shaped as the scales; None: symmetric blocks, scale * (code - 8).
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None

    @property
    def values(self) -> Tensor:
        """The float32 matrix that the blocks stand for."""
        codes, scale = split(self.codes.float()), self.scale.float()[..., None]
        if self.minimum is None:
            values = (codes - CENTER) * scale
        else:
            values = codes * scale + self.minimum.float()[..., None]
        return values.flatten(1)[:, : self.codes.shape[1]]

    def times(self, rows: Tensor | None) -> Blocks:
        """Every output multiplied with a power of two, rows [out]; float16 alone bounds it."""
        if rows is None:
            return self
        scale, minimum = (
            None if part is None else (part.float() * rows[:, None]).half()
            for part in (self.scale, self.minimum)
        )
        assert scale is not None
        return Blocks(self.codes, scale, minimum)

    def rows(self, rows: slice) -> Blocks:
        """Those of some outputs."""
        return Blocks(
            self.codes[rows], self.scale[rows], None if self.minimum is None else self.minimum[rows]
        )

    @classmethod
    def join(cls, pieces: Sequence[Blocks]) -> Blocks:
        """Blocks of outputs that follow each other; all pieces have minima, or none has."""
        minima = [piece.minimum for piece in pieces if piece.minimum is not None]
        return cls(
            torch.cat([piece.codes for piece in pieces]),
            torch.cat([piece.scale for piece in pieces]),
            torch.cat(minima) if minima else None,
        )

    def tensors(self, linear: str) -> dict[str, Tensor]:
        """What a file holds of it: two codes a byte, the second input's in the high half."""
        pairs = functional.pad(self.codes, (0, self.codes.shape[1] % 2)).reshape(len(self.codes), -1, 2)
        found = {linear + CODES: pairs[..., 0] | pairs[..., 1] << 4, linear + SCALE: self.scale}
        return found if self.minimum is None else found | {linear + MINIMUM: self.minimum}

    @classmethod
    def of(cls, linear: str, in_features: int, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of `tensors`."""
        pairs = tensors[linear + CODES]
        codes = torch.stack([pairs & 15, pairs >> 4], 2).flatten(1)[:, :in_features]
        minimum = tensors.get(linear + MINIMUM)
        return cls(codes, tensors[linear + SCALE], minimum)

    def to_numpy(self) -> BlockWeight:
        """As the op's packing takes it."""
        minimum = None if self.minimum is None else self.minimum.numpy()
        return BlockWeight(self.codes.contiguous().numpy(), self.scale.numpy(), minimum)


def split(matrix: Tensor) -> Tensor:
    """[out, blocks, 32] of [out, in], zero padded."""
    return functional.pad(matrix, (0, -matrix.shape[1] % BLOCK)).reshape(len(matrix), -1, BLOCK)

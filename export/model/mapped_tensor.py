"""Tensors whose storage is a file, so that they cost disk and not memory."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import torch
from torch import Tensor


def map_tensor(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor over a file's bytes; where there are none yet they are zero.

    Raises:
        OSError: the disk has no room. Said now: a write into a mapping that finds none kills the process.
    """
    size = prod(shape)
    with path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).reshape(shape)

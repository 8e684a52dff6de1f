"""Tensors whose storage is a file, so that they cost disk and not memory."""

from __future__ import annotations

import os
import sys
from math import prod
from pathlib import Path

import torch
from torch import Tensor


def map_tensor(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor over a file's bytes; where there are none yet they are zero.

    Raises:
        OSError: the disk has no room. Said now, on Linux: a write into a mapping that finds none kills the
            process.
    """
    size = prod(shape)
    if sys.platform == "linux":
        with path.open("ab") as file:
            _reserve(file.fileno(), size * dtype.itemsize, path)
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).reshape(shape)


def _reserve(descriptor: int, size: int, path: Path) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error

"""Files of tensors, one at a time, held against the package safetensors; what is damaged is named."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvfold.export.weights.tensor_file import DTYPES, TensorFile, TensorFolder, save_tensors, write_tensors
from kvfold.plugins.contract.errors import BundleError

TENSORS = {
    name: (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    for name, dtype in DTYPES.items()
} | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}


def same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def test_it_reads_what_the_package_writes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"some": "metadata"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert set(file) == TENSORS.keys()
    assert all(same(file[name], tensor) for name, tensor in TENSORS.items())
    assert same(file.rows("BF16", slice(1, 3)), TENSORS["BF16"][1:3])


def test_the_package_reads_what_it_writes(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", TENSORS)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(same(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_a_tensor_is_made_when_the_one_before_is_written(tmp_path: Path) -> None:
    """Of a file larger than memory only one tensor exists."""
    path, sizes = tmp_path / "x.safetensors", []

    def made() -> Iterator[Tensor]:
        for value in range(3):
            sizes.append(path.stat().st_size)
            yield torch.full((1000, 1000), float(value))

    write_tensors(path, dict.fromkeys("abc", (torch.float32, (1000, 1000))), made())
    assert [size // 4_000_000 for size in sizes] == [0, 1, 2]
    assert [float(load_file(path)[name].mean()) for name in "abc"] == [0, 1, 2]


def test_what_was_not_promised_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="promised"):
        write_tensors(tmp_path / "x", {"a": (torch.float32, (2,))}, [torch.zeros(3)])
    with pytest.raises(ValueError, match="shorter"):
        write_tensors(tmp_path / "x", {"a": (torch.float32, (2,))}, [])


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BundleError, match=r"x\.safetensors is truncated"):
        TensorFile(path)


def test_a_file_that_changes_or_goes_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS)
    file, other = TensorFile(path), TensorFile(path)
    save_tensors(path, {name: tensor + 1 for name, tensor in TENSORS.items()})
    os.utime(path, ns=(0, 0))
    with pytest.raises(BundleError, match="changed since it was opened"):
        file["F32"]
    path.unlink()
    with pytest.raises(BundleError, match="is gone"):
        other["F32"]
    with pytest.raises(BundleError, match="cannot be read"):
        TensorFile(path)


def test_a_full_disk_leaves_no_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Iterator[Tensor]:
        yield torch.zeros(1000, 1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "x", dict.fromkeys("ab", (torch.float32, (1000, 1000))), full())
    with pytest.raises(BundleError, match="truncated"):
        TensorFile(tmp_path / "x")


def test_a_folder_is_one_mapping_and_may_be_absent(tmp_path: Path) -> None:
    for index in range(2):
        save_tensors(tmp_path / f"layer-{index}.safetensors", {f"layer {index}": torch.full((2,), index)})
    folder = TensorFolder(tmp_path)
    assert list(folder) == ["layer 0", "layer 1"]
    assert folder["layer 1"].tolist() == [1, 1] and "layer 2" not in folder
    assert not len(TensorFolder(tmp_path / "absent"))

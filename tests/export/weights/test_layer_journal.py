"""What of work that goes layer by layer outlives a kill, and what is never taken for it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfold.export.weights.layer_journal import STATE, LayerJournal, MemoryJournal, write_by_layer
from kvfold.export.weights.tensor_file import TensorFolder
from kvfold.plugins.contract.progress import unheard


def finish(journal: LayerJournal | MemoryJournal, layer: int) -> None:
    journal.finish(layer, {f"tensor.{layer}": torch.full((2,), layer)}, lambda: {"layer": layer + 1})


def begun(folder: Path, key: str = "key", seconds: float = 0) -> tuple[LayerJournal, Any]:
    journal = LayerJournal(folder, key, seconds)
    return journal, journal.load()


def test_a_later_process_finds_the_state_and_the_tensors(tmp_path: Path) -> None:
    journal, state = begun(tmp_path / "work")
    assert state is None
    for layer in range(3):
        finish(journal, layer)
    journal, state = begun(tmp_path / "work")
    assert state == {"layer": 3}
    assert {name: int(tensor[0]) for name, tensor in journal.tensors.items()} == {
        f"tensor.{layer}": layer for layer in range(3)
    }


@pytest.mark.parametrize("links", [True, False])
def test_finished_layers_are_in_both_folders_until_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """A disk may know no second names of a file."""
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: os.link("", ""))
    journal, _ = begun(tmp_path / "work")
    finish(journal, 0)
    journal.share_with(tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost")
    journal, state = begun(tmp_path / "work")
    assert state == {"layer": 1}
    finish(journal, 1)
    journal.share_with(tmp_path / "done")
    shutil.rmtree(tmp_path / "work")
    assert [int(tensor[0]) for tensor in TensorFolder(tmp_path / "done").values()] == [0, 1]


def test_layers_after_the_last_state_are_done_again(tmp_path: Path) -> None:
    journal, _ = begun(tmp_path / "work")
    finish(journal, 0)
    journal, state = begun(tmp_path / "work", seconds=1e9)
    finish(journal, 1)
    journal, state = begun(tmp_path / "work")
    assert state == {"layer": 1} and list(journal.tensors) == ["tensor.0"]


@pytest.mark.parametrize("harm", ["another key", "a file is gone", "the state is cut"])
def test_what_does_not_belong_together_begins_anew(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "work"
    journal, _ = begun(folder)
    finish(journal, 0)
    if harm == "a file is gone":
        (folder / "layer-0000.safetensors").unlink()
    elif harm == "the state is cut":
        (folder / STATE).write_bytes((folder / STATE).read_bytes()[:100])
    journal, state = begun(folder, "other" if harm == "another key" else "key")
    assert state is None and not list(folder.iterdir()) and not len(journal.tensors)


def test_a_state_that_does_not_fit_on_the_disk_is_a_typed_error_and_takes_no_room(tmp_path: Path) -> None:
    journal, _ = begun(tmp_path / "work")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match=STATE):
            journal.finish(0, {}, lambda: {"stream": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert list((tmp_path / "work").iterdir()) == []


def test_memory_keeps_tensors_and_no_state() -> None:
    journal = MemoryJournal()
    finish(journal, 0)
    assert list(journal.tensors) == ["tensor.0"] and journal.load() is None


def test_tensors_are_written_a_layer_a_file(tmp_path: Path) -> None:
    names = ["model.norm.weight", "model.layers.10.a.weight", "model.layers.9.a.weight", "model.layers.9.b"]
    write_by_layer(tmp_path / "x", {name: torch.zeros(1) for name in names}, unheard)
    found = {path.name: set(TensorFolder(path.parent)) for path in (tmp_path / "x").iterdir()}
    assert set(found) == {f"{stem}.safetensors" for stem in ("layer-0009", "layer-0010", "outside-layers")}
    assert set(TensorFolder(tmp_path / "x")) == set(names)

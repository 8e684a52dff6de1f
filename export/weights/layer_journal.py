"""Work that goes layer by layer: what is done is kept, on disk where it shall survive the process."""

from __future__ import annotations

import errno
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kvfold.export.weights.tensor_file import TensorFolder, layer_files, save_tensors
from kvfold.plugins.contract.progress import Progress
from kvfold.plugins.contract.write_aside import write_aside

STATE = "state.pt"
SECONDS = 60.0  # between two states: each has the residual stream in it
State = dict[str, Any]


class Journal(Protocol):
    """Takes what each layer gave."""

    def load(self) -> State | None:
        """What the work goes on from; None where it begins."""
        ...

    def finish(self, layer: int, tensors: Mapping[str, Tensor], state: Callable[[], State]) -> None:
        """A layer is done: its final tensors, and what the next one begins with."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Those of all finished layers."""
        ...


class MemoryJournal:
    """Keeps tensors in memory, and nothing beyond the process."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def load(self) -> State | None:
        """It always begins anew."""
        return None

    def finish(self, layer: int, tensors: Mapping[str, Tensor], state: Callable[[], State]) -> None:
        """Keep the tensors."""
        self.tensors.update(tensors)


class LayerJournal:
    """A folder with a file of tensors a layer, and now and then a state to go on from after a kill.

    Another key's folder is emptied. Files are whole or not there: each is renamed into place.
    """

    def __init__(self, folder: Path, key: str, seconds: float = SECONDS) -> None:
        """`key` stands for everything that decides the result; `seconds` are between two states."""
        self.folder, self._key, self._seconds = folder, key, seconds
        self._saved = time.monotonic()

    def load(self) -> State | None:
        """The last state, where it can be read and the files that it names are there."""
        try:
            kept = torch.load(self.folder / STATE, map_location="cpu", weights_only=True, mmap=True)
            whole = kept["key"] == self._key and all((self.folder / name).is_file() for name in kept["files"])
        except (OSError, EOFError, RuntimeError, TypeError, KeyError, pickle.UnpicklingError):
            whole = False
        if not whole:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            return None
        for path in self.folder.iterdir():  # of layers that were done after the state was kept
            if path.name not in (STATE, *kept["files"]):
                path.unlink()
        state: State = kept["state"]
        return state

    def finish(self, layer: int, tensors: Mapping[str, Tensor], state: Callable[[], State]) -> None:
        """Write the layer's tensors, if it has any, and a state where the last one is old."""
        if tensors:
            path = self.folder / f"layer-{layer:04d}.safetensors"
            write_aside(path, lambda aside: save_tensors(aside, tensors))
        if time.monotonic() - self._saved < self._seconds:
            return
        names = [path.name for path in layer_files(self.folder)]
        kept = {"key": self._key, "files": names, "state": state()}
        save_state(self.folder / STATE, kept)
        self._saved = time.monotonic()

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Of all layers, read on access."""
        return TensorFolder(self.folder)

    def share_with(self, folder: Path) -> None:
        """All layers are done: their files are in `folder`, too, which is made.

        They stay here until whoever has that folder is done with it, so that its failure costs no layer.
        """
        folder.mkdir(parents=True)
        for path in layer_files(self.folder):
            _link(path, folder / path.name)


def _link(path: Path, other: Path) -> None:
    """Another name for a file that is never written again; a copy where the disk knows no such names."""
    try:
        other.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, other)


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a state that `torch.load` reads, whole or not at all; raises OSError where that cannot be."""

    def save(aside: Path) -> None:
        try:
            torch.save(state, aside)
        except RuntimeError as error:  # all that PyTorch says of a disk without room
            raise OSError(errno.EIO, "it cannot be written; the disk may be full", str(path)) from error

    write_aside(path, save)


def write_by_layer(folder: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Write tensors into `folder`, which is made, a file a layer; no two layers are in memory at once."""
    folder.mkdir(parents=True)
    layers: dict[str, list[str]] = {}
    for name in tensors:
        inside = name.startswith("model.layers.")
        key = f"layer-{int(name.split('.')[2]):04d}" if inside else "outside-layers"
        layers.setdefault(key, []).append(name)
    for index, (key, own) in enumerate(layers.items()):
        progress(index / len(layers))
        save_tensors(folder / f"{key}.safetensors", {name: tensors[name] for name in own})

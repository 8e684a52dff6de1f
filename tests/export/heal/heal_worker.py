"""Heals in a process of its own, which a test may kill; each line of output is a report."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch

from kvfold.export.heal.heal import heal
from kvfold.export.heal.healed_adapter import save_adapter


def main(job: Path, folder: Path) -> None:
    """Heal the pickled `Healing` and folded weights of `job`; write work/ and adapter.safetensors."""
    torch.set_num_threads(1)
    healing, folded = pickle.loads(job.read_bytes())

    def say(fraction: float, note: str = "") -> None:
        print(fraction, note, flush=True)

    adapter = heal(healing, folded, folder / "work", "key", say)
    save_adapter(folder / "adapter.safetensors", adapter, "base", healing.plan)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""EngineFiles: one built engine of a bundle, with each of its JSON files read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import Bundle
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.protocol import EngineInfo


@dataclass(frozen=True)
class EngineFiles:
    """What it takes to load an engine.

    Attributes:
        directory: `engine/<target>` of the bundle.
        config: its engine.json.
        plan: the bundle's FoldPlan.
    """

    directory: Path
    config: EngineConfig
    plan: FoldPlan

    @classmethod
    def read(cls, directory: Path, plan: FoldPlan) -> EngineFiles:
        """An engine's directory, of a bundle whose plan is known; raises BundleError."""
        return cls(directory, EngineConfig.load(directory), plan)

    def info(self, num_pages: Mapping[str, int]) -> EngineInfo:
        """What the scheduler must know of this engine, with pools of so many pages."""
        return EngineInfo(
            plan=self.plan,
            num_pages=dict(num_pages),
            vocab_size=self.config.vocab_size,
            max_context_length=self.config.max_context_length,
            fingerprint=self.config.fingerprint,
        )


def open_engine(bundle: Bundle, target: str) -> EngineFiles:
    """The files of a bundle's engine, each checked.

    Raises:
        BundleError: the bundle has no engine for the target, or a file of it is damaged.
    """
    return EngineFiles.read(bundle.directory(f"engine/{target}"), bundle.plan)

"""Open the tier of an engine's pages."""

from __future__ import annotations

import atexit
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.runtime.memory.tiers.kv_tier import DirectoryTier, KvTier
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.prefix import TierLimits

if TYPE_CHECKING:
    from kvfold.runtime.engine.engine_files import EngineFiles


def open_tier(files: EngineFiles, directory: Path, quota_bytes: int) -> KvTier:
    """The directory, for the pages of this engine alone; at the process's end it takes what is under way.

    Raises:
        TierError: the directory cannot be made, is none, is another user's, or others may write to it.
    """
    layout = TierLayout.of(files.plan)
    root = layout.root_key(files.config.fingerprint, kernel_class(files))
    tier = DirectoryTier(directory, layout, root, TierLimits(quota_bytes))
    atexit.register(tier.close)
    return tier


def kernel_class(files: EngineFiles) -> str:
    """What computes the pages: those of another class may differ in their last bits."""
    backend = files.config.backend
    if backend != "cpu":
        return backend
    from kvfold.plugins.cpu.cpu_library import active_isa

    return f"{backend} {active_isa()}"

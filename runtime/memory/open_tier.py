"""Open the tiers of an engine's pages."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_tier import DirectoryTier, HostTier
from kvfold.runtime.memory.tiers.prefix import TierLimits
from kvfold.runtime.memory.tiers.stacked_tier import StackedTier

if TYPE_CHECKING:
    from kvfold.runtime.engine.engine_files import EngineFiles
    from kvfold.runtime.memory.tiers.kv_tier import KvTier
    from kvfold.runtime.runtime_config import RuntimeConfig


def open_tier(files: EngineFiles, config: RuntimeConfig) -> KvTier | None:
    """What the configuration keeps of the pages of this engine below its pools; None for nothing.

    At the process's end it takes what is under way. Raises as `stack_tiers`.
    """
    layout = TierLayout.of(files.plan)
    tier = stack_tiers(layout, layout.root_key(files.config.fingerprint, kernel_class(files)), config)
    if tier is not None:
        atexit.register(tier.close)
    return tier


def stack_tiers(layout: TierLayout, root_key: bytes, config: RuntimeConfig) -> KvTier | None:
    """Host memory over a directory, or the one that is asked for.

    Raises:
        TierError: the directory cannot be made, is none, is another user's, or others may write to it.
    """
    tiers: list[KvTier] = []
    if config.kv_tier is not None:
        tiers.append(DirectoryTier(config.kv_tier, layout, root_key, TierLimits(config.kv_tier_bytes)))
    if config.kv_host_bytes:
        tiers.insert(0, HostTier(layout, root_key, TierLimits(config.kv_host_bytes)))
    return StackedTier(tiers) if len(tiers) > 1 else next(iter(tiers), None)


def kernel_class(files: EngineFiles) -> str:
    """What computes the pages: those of another class may differ in their last bits."""
    backend = files.config.backend
    if backend != "cpu":
        return backend
    from kvfold.plugins.cpu.cpu_library import active_isa

    return f"{backend} {active_isa()}"

"""Whether a server keeps pages of conversations beside its sessions, and where."""

from __future__ import annotations

import logging
from typing import Any

from kvfold.plugins.contract.errors import RequestError, TierError
from kvfold.runtime.memory.tiers.directory_files import DirectoryFiles
from kvfold.runtime.server.start.server_settings import ServerSettings

LOG = logging.getLogger("kvfold.server")
FOLDER = "kv"


def kept_pages(settings: ServerSettings) -> dict[str, Any]:
    """Fields of RuntimeConfig that keep pages in the state folder, which is there; none where none are kept.

    A disk that fails is told in the log, and costs no more: the server then runs without a tier.

    Raises:
        RequestError: what lies there is no directory, another user's, or others may write to it.
    """
    if settings.state_dir is None or not settings.kv_tier_bytes:
        return {}
    folder = settings.state_dir / FOLDER
    try:
        DirectoryFiles(folder)  # makes it where it is missing, and looks at it
    except TierError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or isinstance(cause, FileExistsError):
            raise RequestError(f"--state-dir cannot be used: {error}") from error
        LOG.error("no pages are kept: %s cannot be used: %s", folder, cause.strerror)
        return {}
    return {"kv_tier": folder, "kv_tier_bytes": settings.kv_tier_bytes}

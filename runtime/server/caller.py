"""Who sends a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["inference", "admin", "metrics"]
# Who may use a route: a role's, which an admin has too; whoever has a key; everybody.
Access = Role | Literal["any key", "anyone"]


@dataclass(frozen=True)
class Caller:
    """Whose key a request came with.

    Attributes:
        name: of the key, for the log.
        tenant: whose prefixes it may reuse.
        roles: what it may do.
        max_concurrent: requests that may run or wait for it at once; None for no limit of its own.
    """

    name: str
    tenant: str
    roles: frozenset[Role]
    max_concurrent: int | None = None


# Without a file of keys everybody is this one.
ANYONE = Caller("", "", frozenset({"inference", "admin", "metrics"}))
NOBODY = Caller("", "", frozenset())

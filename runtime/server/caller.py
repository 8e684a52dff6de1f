"""Who sends a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["inference", "admin", "metrics", "probe"]
# Who may use a route: a role's, which an admin has too; whoever has a key; everybody. Any key may ask what a
# probe may, and a probe nothing else.
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


def may(caller: Caller, access: Access) -> bool:
    """Whether a caller may use a route that is not for everybody."""
    if access == "probe":
        return bool(caller.roles)
    if access == "any key":
        return bool(caller.roles - {"probe"})
    return bool(caller.roles & {access, "admin"})

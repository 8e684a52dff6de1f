"""Finding: the result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "absent", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        subject: what was looked at.
        status: `ok`; `absent`, an optional part is not there; `problem`, something kvfold needs is wrong.
        detail: what is there, or why not.
        action: what to do about it; empty when nothing needs doing.
    """

    subject: str
    status: Status
    detail: str
    action: str = ""

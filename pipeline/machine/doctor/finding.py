"""Finding: the result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "absent", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        part: what was looked at, of the machine or of what is installed on it.
        status: `ok`; `absent`, an optional part is not there; `problem`, something kvfold needs is wrong.
        detail: what is there, or why not.
        action: what to do about it; empty when nothing needs doing.
    """

    part: str
    status: Status
    detail: str
    action: str = ""

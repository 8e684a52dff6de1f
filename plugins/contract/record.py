"""The base of every record that is read from a file or written to one: settings, facts, results."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A value that never changes; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

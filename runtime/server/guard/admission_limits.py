"""AdmissionLimits: what may be inside the server at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdmissionLimits:
    """What may be inside at once.

    Attributes:
        max_running: replies that the engine computes at once.
        max_waiting: replies that may wait beyond them.
        max_waiting_seconds: of prefill at the measured rate that may wait.
    """

    max_running: int
    max_waiting: int
    max_waiting_seconds: float = 30.0

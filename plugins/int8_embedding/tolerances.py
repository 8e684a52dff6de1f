"""How close a backend must come to the reference."""

from __future__ import annotations

OUTPUT = 0.0  # one IEEE product a number

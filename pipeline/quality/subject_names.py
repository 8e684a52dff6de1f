"""What the subjects are called, in every result and table."""

from __future__ import annotations

ORIGINAL, FOLDED, ENGINE = "original", "folded", "engine"
# The original in bfloat16, whose distance from its float32 self is the noise floor.
BFLOAT16 = "original_bfloat16"

"""EngineConfig: what `engine/<target>/engine.json` says of a built engine."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

ENGINE_FILE = "engine.json"


class EngineConfig(BaseModel):
    """Facts of one built engine.

    Attributes:
        target: which backend it was built for.
        vocab_size: width of the logits.
        max_context_length: longest sequence in tokens (rows of the RoPE tables).
        fingerprint: identifies weights, plan and scales.
        passes: how often each graph pass matched when the graph was lowered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    vocab_size: int = Field(ge=1)
    max_context_length: int = Field(ge=1)
    fingerprint: str
    passes: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> EngineConfig:
        """Read `engine.json` of an engine's directory."""
        return cls.model_validate_json((directory / ENGINE_FILE).read_bytes())

    def save(self, directory: Path) -> None:
        """Write `engine.json` into an engine's directory."""
        (directory / ENGINE_FILE).write_text(self.model_dump_json(indent=2) + "\n")

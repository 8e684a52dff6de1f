"""What a chat says of its model: its plan, its context, and the KV bytes of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.byte_sizes import format_bytes
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.kv_savings import KvBytes


@dataclass(frozen=True)
class ChatModel:
    """The model of a chat.

    Attributes:
        name: its bundle's, with the family of the original.
        context_length: tokens of the longest conversation.
    """

    name: str
    plan: FoldPlan
    shape: AttentionShape
    context_length: int

    @classmethod
    def read(cls, root: Path, context_length: int) -> ChatModel:
        """Of a bundle's folder; raises BundleError where that is damaged."""
        from kvfold.export.model.model_config import ModelConfig
        from kvfold.runtime.bundle import CONFIG, open_bundle

        bundle = open_bundle(root)
        config = ModelConfig.model_validate_json(bundle.file(CONFIG).read_bytes())
        name = f"{root.resolve().name} ({config.family})"
        return cls(name, bundle.plan, config.attention_shape, context_length)

    def kv_bytes(self, tokens: int) -> KvBytes:
        """KV bytes of a conversation of so many tokens, unfolded and folded."""
        return KvBytes(tokens, self.shape.kv_bytes(tokens), self.plan.kv_bytes(tokens))

    def describe(self) -> str:
        """A few lines: model, plan, context, and how to go on."""
        full = self.kv_bytes(self.context_length)
        return (
            f"{self.name}: {_describe_plan(self.plan)}. Context {self.context_length:,} tokens: "
            f"{format_bytes(full.folded)} of KV cache, unfolded {format_bytes(full.original)}.\n"
            "/help lists the commands, Ctrl-D leaves."
        )


def _describe_plan(plan: FoldPlan) -> str:
    """`30 layers keep 28 KV banks in int8, 2 global and 26 with windows of 32 to 512 tokens`."""
    windows = [group.sliding_window for group in plan.groups if group.sliding_window is not None]
    counts = {True: 0, False: 0}
    for group in plan.groups:
        counts[group.sliding_window is None] += len(group.banks)
    kinds = [f"{counts[True]} global"] if counts[True] else []
    if windows:
        longest = f" to {max(windows):,}" if len(set(windows)) > 1 else ""
        kinds.append(f"{counts[False]} with windows of {min(windows):,}{longest} tokens")
    dtypes = sorted({bank.kv_dtype for bank in plan.banks})
    return (
        f"{len(plan.layers)} layers keep {len(plan.banks)} KV banks in {' and '.join(dtypes)}, "
        f"{' and '.join(kinds)}"
    )

"""One model's residual stream over the calibration text, advanced layer by layer.

Only the stream of the current layer exists, in a mapped file without a name: a long text costs disk and not
memory, and whatever ends the process gives the disk back. Blocks are built from the weights when they are
needed and dropped again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kvfold.export.model.decoder import Block, pack
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.mapped_tensor import map_tensor
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.fold_plan import FoldPlan

TOKENS_PER_BATCH = 2048


def load_block(
    config: ModelConfig,
    plan: FoldPlan,
    weights: Mapping[str, Tensor],
    layer: int,
    mlp: nn.Module | None = None,
) -> Block:
    """The decoder layer `layer` alone, from weights with Hugging Face names; an `mlp` is not read again."""
    prefix = f"model.layers.{layer}."
    names = [name.removeprefix(prefix) for name in weights if name.startswith(prefix)]
    read = [name for name in names if mlp is None or not name.startswith("mlp.")]
    with torch.device("meta"):
        block = Block(config, plan, layer)
    tensors = {
        name.lstrip("."): tensor
        for name, tensor in pack({f".{n}": weights[prefix + n] for n in read}).items()
    }
    if mlp is not None:
        tensors |= {f"mlp.{name}": tensor for name, tensor in mlp.state_dict().items()}
    block.load_state_dict(tensors, assign=True)
    return block.requires_grad_(False).eval()


class ResidualStream:
    """Residual stream of N sequences of L tokens through one model.

    Attributes:
        hidden: float32 [N, L, hidden_size], what the next block adds to.
        heads: float32 [N, L, heads * head_dim], head outputs of the layer at work.
    """

    def __init__(self, config: ModelConfig, plan: FoldPlan, shape: tuple[int, int]) -> None:
        """Room for N sequences of L tokens."""
        self.config = config
        self.plan = plan
        self.mixer = DenseAttention(config, plan)
        self.hidden = _mapped(*shape, config.hidden_size)
        self.heads = _mapped(*shape, config.num_attention_heads * config.head_dim)
        self._keys_values: dict[int, dict[int, tuple[Tensor, Tensor]]] = {
            rows.start: {} for rows in self.batches()
        }

    @classmethod
    def embed(
        cls, config: ModelConfig, plan: FoldPlan, weights: Mapping[str, Tensor], tokens: Tensor
    ) -> ResidualStream:
        """The stream of tokens [N, L] before layer 0."""
        count, length = tokens.shape
        stream = cls(config, plan, (count, length))
        embedding = weights["model.embed_tokens.weight"]
        for rows in stream.batches():
            stream.hidden[rows] = functional.embedding(tokens[rows], embedding)
        return stream

    def fork(self, plan: FoldPlan) -> ResidualStream:
        """Another stream that stands where this one does and goes on under `plan`, with KV of its own."""
        count, length, _ = self.hidden.shape
        stream = ResidualStream(self.config, plan, (count, length))
        stream.hidden.copy_(self.hidden)
        return stream

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from, between two layers."""
        return {"hidden": self.hidden, "keys_values": self._keys_values}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand where a stream of the same text stood."""
        self.hidden.copy_(state["hidden"])
        self._keys_values = state["keys_values"]

    def replan(self, plan: FoldPlan) -> None:
        """Go on under a plan that differs in layers still to come."""
        self.plan = self.mixer.plan = plan

    def batches(self) -> Iterator[slice]:
        """Slices of whole sequences, about TOKENS_PER_BATCH tokens each."""
        count, length, _ = self.hidden.shape
        step = sequences_per_batch(length)
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def attend(self, block: Block, rows: slice) -> Tensor:
        """Compute and keep the head outputs of a batch; donors' keys stay until the last consumer."""
        attention = block.self_attn
        self.mixer.keys_values = self._keys_values[rows.start]
        self.heads[rows] = self.mixer(attention, attention.project(block.attention_input(self.hidden[rows])))
        donor = self.plan.layers[attention.layer].donor
        if not any(layer.donor == donor for layer in self.plan.layers[attention.layer + 1 :]):
            del self.mixer.keys_values[donor]
        return self.heads[rows]

    def project(self, block: Block, rows: slice) -> Tensor:
        """Projections [B, L, q + 2 kv] of a batch as the block's linear gives them, before any norm."""
        projected: Tensor = block.self_attn.qkv_proj(block.attention_input(self.hidden[rows]))
        return projected

    def advance(self, block: Block, rows: slice) -> None:
        """Finish the block on a batch whose head outputs are there."""
        hidden = block.add_attention(self.hidden[rows], block.self_attn.o_proj(self.heads[rows]))
        self.hidden[rows] = block.add_mlp(hidden)


def _mapped(*shape: int) -> Tensor:
    """A float32 tensor whose storage is a file; its name goes at once, the file with the tensor."""
    with NamedTemporaryFile(prefix="kvfold-") as file:
        return map_tensor(Path(file.name), shape, torch.float32)


def sequences_per_batch(length: int) -> int:
    """How many sequences of `length` tokens make about TOKENS_PER_BATCH tokens."""
    return max(1, TOKENS_PER_BATCH // length)

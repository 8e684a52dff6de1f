"""The decoder: embedding, blocks of attention and MLP, norm, head.

One module for every family and every plan: what families differ in is a switch of ModelConfig. Projections
that read the same input are packed into one linear (`qkv_proj`, `gate_up_proj`); checkpoints keep Hugging
Face's names and `from_weights` packs them. How attention itself is computed is a `Mixer`: `DenseAttention`
for whole sequences, the paged op where the model is exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from kvfold.export.model.mlp import GatedMLP
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import BLOCK_NORMS, RMSNorm
from kvfold.plugins.contract.errors import CheckpointError
from kvfold.plugins.contract.fold_plan import FoldPlan

# HF names that one packed linear replaces, in packing order.
PACKED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}


class Mixer(Protocol):
    """Computes attention for one layer from its packed projections."""

    def __call__(self, attention: Attention, projected: Tensor) -> Tensor:
        """Projections [..., q + 2 kv] (or q alone for a consumer) to head outputs [..., q]."""
        ...


class Attention(nn.Module):
    """Projections of one layer around its mixer; a consumer projects queries only."""

    def __init__(self, config: ModelConfig, plan: FoldPlan, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = plan.layers[layer].num_key_value_heads
        self.head_dim = config.head_dim
        self.query_size = self.num_heads * self.head_dim
        self.key_value_size = self.num_key_value_heads * self.head_dim
        width = self.query_size + (2 * self.key_value_size if plan.is_producer(layer) else 0)
        self.qkv_proj = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.query_size, config.hidden_size, bias=config.output_bias)
        self.qk_norm = config.qk_norm
        whole = config.qk_norm == "projection"
        sizes = (self.query_size, self.key_value_size) if whole else (self.head_dim, self.head_dim)
        self.q_norm = RMSNorm(sizes[0], config.rms_norm_eps) if config.qk_norm else None
        owns_keys = config.qk_norm and plan.is_producer(layer)
        self.k_norm = RMSNorm(sizes[1], config.rms_norm_eps) if owns_keys else None
        # As Hugging Face's gpt-oss names the learned logits that the plan calls head_sink.
        has_sinks = plan.layers[layer].head_sink
        self.sinks = nn.Parameter(torch.zeros(self.num_heads)) if has_sinks else None

    @property
    def head_norms(self) -> tuple[RMSNorm | None, RMSNorm | None]:
        """Norms of each head of q and of k, which the mixer computes; None where there is none."""
        return (self.q_norm, self.k_norm) if self.qk_norm == "head" else (None, None)

    def project(self, hidden: Tensor) -> Tensor:
        """What the mixer takes, [..., q + 2 kv] or for a consumer [..., q]."""
        return self.normalise(self.qkv_proj(hidden))

    def normalise(self, projected: Tensor) -> Tensor:
        """Projections after norms of whole ones; those of heads are the mixer's."""
        if self.qk_norm != "projection" or self.q_norm is None:
            return projected
        query, *rest = torch.split(projected, self._sizes(projected), dim=-1)
        if self.k_norm is not None:
            rest[0] = self.k_norm(rest[0])
        return torch.cat([self.q_norm(query), *rest], dim=-1)

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q, k, v as heads [..., heads, head_dim]; k and v are None for a consumer."""
        query, *rest = torch.split(projected, self._sizes(projected), dim=-1)
        heads = [part.reshape(*part.shape[:-1], -1, self.head_dim) for part in (query, *rest)]
        return heads[0], heads[1] if rest else None, heads[2] if rest else None

    def _sizes(self, projected: Tensor) -> list[int]:
        producer = projected.shape[-1] != self.query_size
        return [self.query_size] + [self.key_value_size] * (2 if producer else 0)

    def forward(self, hidden: Tensor, mixer: Mixer) -> Tensor:
        """Attention-block output, the shape of `hidden`."""
        output: Tensor = self.o_proj(mixer(self, self.project(hidden)))
        return output


class Block(nn.Module):
    """One decoder layer; its norms stand where the config places them."""

    def __init__(self, config: ModelConfig, plan: FoldPlan, layer: int) -> None:
        super().__init__()
        self.norms = BLOCK_NORMS[config.norm_placement]
        self.self_attn = Attention(config, plan, layer)
        self.mlp = GatedMLP(config)
        for name in self.norms.present:
            self.add_module(name, RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, hidden: Tensor, mixer: Mixer) -> Tensor:
        """Residual stream after this layer, the shape of `hidden`."""
        return self.add_mlp(self.add_attention(hidden, self.self_attn(self.attention_input(hidden), mixer)))

    def attention_input(self, hidden: Tensor) -> Tensor:
        """What attention reads of the residual stream."""
        return self._normalise(self.norms.attention_input, hidden)

    def add_attention(self, hidden: Tensor, output: Tensor) -> Tensor:
        """The residual stream with what attention gave."""
        return hidden + self._normalise(self.norms.attention_output, output)

    def mlp_input(self, hidden: Tensor) -> Tensor:
        """What the MLP reads of the residual stream after attention."""
        return self._normalise(self.norms.mlp_input, hidden)

    def add_mlp(self, hidden: Tensor) -> Tensor:
        """The residual stream after attention with what the MLP makes of it."""
        return hidden + self._normalise(self.norms.mlp_output, self.mlp(self.mlp_input(hidden)))

    def _normalise(self, norm: str | None, x: Tensor) -> Tensor:
        output: Tensor = x if norm is None else self.get_submodule(norm)(x)
        return output


class Backbone(nn.Module):
    """Everything below the head, under the name `model` that Hugging Face gives it."""

    def __init__(self, config: ModelConfig, plan: FoldPlan) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, plan, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, mixer: Mixer) -> Tensor:
        """Final hidden states [..., hidden_size] of token ids [...]."""
        hidden = self.embed_tokens(input_ids)
        for block in self.layers:
            hidden = block(hidden, mixer)
        output: Tensor = self.norm(hidden)
        return output


class Decoder(nn.Module):
    """A decoder of any supported family under any plan."""

    def __init__(self, config: ModelConfig, plan: FoldPlan) -> None:
        super().__init__()
        self.config = config
        self.plan = plan
        self.model = Backbone(config, plan)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_weights(cls, config: ModelConfig, plan: FoldPlan, weights: Mapping[str, Tensor]) -> Decoder:
        """A decoder over weights with Hugging Face names; unpacked tensors are shared, not copied.

        Raises:
            CheckpointError: a tensor is missing, unexpected, or of the wrong shape.
        """
        with torch.device("meta"):
            decoder = cls(config, plan)
        packed = pack(weights)
        if config.tie_word_embeddings:
            packed["lm_head.weight"] = packed["model.embed_tokens.weight"]
        expected = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in packed.items()}
        for name in sorted(expected.keys() | given.keys()):
            if expected.get(name) != given.get(name):
                raise CheckpointError(
                    f"tensor {name}: the config and plan ask for shape {expected.get(name, 'none')}, "
                    f"the weights hold {given.get(name, 'none')}; check that they belong together"
                )
        decoder.load_state_dict(packed, assign=True)
        if config.tie_word_embeddings:
            decoder.lm_head.weight = decoder.model.embed_tokens.weight
        return decoder.requires_grad_(False).eval()

    def forward(self, input_ids: Tensor, mixer: Mixer) -> Tensor:
        """Logits [..., vocab_size] of token ids [...]; one mixer serves one pass."""
        return self.logits(self.model(input_ids, mixer))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab_size] of final hidden states [..., hidden_size]."""
        return cap_logits(self.lm_head(hidden), self.config.final_softcap)


def cap_logits(logits: Tensor, softcap: float) -> Tensor:
    """softcap * tanh(logits / softcap); a softcap of 0 is off."""
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def pack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face names to the decoder's: parallel projections (weights and biases) concatenated."""
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for target, parts in PACKED.items():
            prefix, leaf = target.rsplit(".", 1)
            head = f".{prefix}.{parts[0]}."
            if head in name:
                present = [name.replace(head, f".{prefix}.{part}.") for part in parts]
                packed[name.replace(head, f".{prefix}.{leaf}.")] = torch.cat(
                    [weights[part] for part in present if part in weights]
                )
        if not any(f".{part}." in name for parts in PACKED.values() for part in parts):
            packed[name] = tensor
    return packed

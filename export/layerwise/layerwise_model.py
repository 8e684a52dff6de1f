"""Final hidden states of texts, a layer at a time: memory holds a layer, what it reads, and the head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from kvfold.export.model.decoder import cap_logits
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.mapped_tensor import map_tensor
from kvfold.export.model.matmul_dtype import matmul_dtype, multiply_in_float32
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import RMSNorm
from kvfold.export.model.residual_stream import load_block
from kvfold.plugins.contract.fold_plan import FoldPlan

# Told of each layer of each text: the text's tokens, divided by the number of layers.
LayerTick = Callable[[float], None]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROUNDED_ROWS = 16_384  # of the head at a time, where it is rounded


class LayerwiseModel:
    """A model that is read layer by layer: what `Decoder` computes, to the bit.

    Args:
        config: of the unfolded model.
        plan: how it is folded.
        weights: float32, Hugging Face names, read on access.
        dtype: what it computes in; None is float32.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: FoldPlan,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.plan, self.weights = config, plan, weights
        self.dtype = dtype or torch.float32

    def final_hidden(
        self, texts: Sequence[Tensor], tick: LayerTick, embedding: Tensor | None = None
    ) -> list[Tensor]:
        """Hidden states [L, hidden_size] of each text int64 [L], after the last norm, in a mapped file.

        `embedding` is the table, where it is held anyway.
        """
        ends = torch.tensor([len(text) for text in texts]).cumsum(0).tolist()
        stream = _mapped((ends[-1], self.config.hidden_size), self.dtype)
        hidden = [stream[end - len(text) : end] for text, end in zip(texts, ends, strict=True)]
        with torch.inference_mode():
            self.embed(texts, hidden, embedding)
            layers = range(self.config.num_hidden_layers)
            self.run([rows[None] for rows in hidden], layers, DenseAttention(self.config, self.plan), tick)
            norm = self.final_norm()
            for rows in hidden:
                rows.copy_(norm(rows))
        return hidden

    def embed(
        self, texts: Sequence[Tensor], hidden: Sequence[Tensor], embedding: Tensor | None = None
    ) -> None:
        """Write what stands before the first layer, [..., hidden_size] of each text's tokens [...]."""
        table = self.weights[EMBEDDING] if embedding is None else embedding
        for text, rows in zip(texts, hidden, strict=True):
            rows.copy_(functional.embedding(text, table))

    def run(
        self,
        hidden: Sequence[Tensor],
        layers: range,
        mixer: DenseAttention,
        tick: LayerTick = lambda tokens: None,
        given: Mapping[int, nn.Module] = MappingProxyType({}),
    ) -> None:
        """Advance hidden states [B, L, hidden_size] of texts through neighbouring layers, in place.

        A layer is read, and the next one when all texts are past it; those that are `given` stand in. The
        mixer's plan says what is visible; a donor's keys stay until its last consumer.
        """
        plan = mixer.plan.layers
        kept: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in hidden]
        for index in layers:
            block = given.get(index) or self.block(index)
            donor = plan[index].donor
            is_last = not any(later.donor == donor for later in plan[index + 1 :])
            for rows, mixer.keys_values in zip(hidden, kept, strict=True):
                rows.copy_(block(rows, mixer))
                if is_last:
                    del mixer.keys_values[donor]
                tick(rows.shape[0] * rows.shape[1] / len(plan))

    def block(self, layer: int) -> nn.Module:
        """A layer alone."""
        return self._in_dtype(load_block(self.config, self.plan, self.weights, layer))

    def final_norm(self) -> nn.Module:
        """The norm before the head."""
        norm = RMSNorm(self.config.hidden_size, self.config.rms_norm_eps).requires_grad_(False)
        norm.weight.copy_(self.weights["model.norm.weight"])
        return self._in_dtype(norm)

    @property
    def head_name(self) -> str:
        """Name of the weight that is the head."""
        return EMBEDDING if self.config.tie_word_embeddings else HEAD

    def logits(self, hidden: Tensor, head: Tensor) -> Tensor:
        """Logits float32 [L, vocab] of final hidden states [L, hidden_size].

        `head` is its weight in float32; in another type it is rounded a block of rows at a time, so that no
        second one is held.
        """
        if self.dtype is torch.float32:
            found = functional.linear(hidden, head)
        else:
            parts = torch.split(head, ROUNDED_ROWS)
            found = torch.cat([self._rounded(part)(hidden) for part in parts], dim=-1)
        return cap_logits(found, self.config.final_softcap).float()

    def _rounded(self, rows: Tensor) -> nn.Module:
        linear = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(rows, requires_grad=False)
        return self._in_dtype(linear)

    def _in_dtype(self, module: nn.Module) -> nn.Module:
        """The same module, which now computes in the model's type."""
        module.to(self.dtype)
        if self.dtype is torch.bfloat16 and matmul_dtype() is torch.float32:
            multiply_in_float32(module)
        return module


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    with NamedTemporaryFile(prefix="kvfold-") as file:
        return map_tensor(Path(file.name), shape, dtype)

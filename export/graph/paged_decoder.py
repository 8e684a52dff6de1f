"""The decoder as it is exported: one packed step over paged caches, in the order of `plugins.step`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from export.model.decoder import Attention, Decoder
from export.model.rope import rope_tables
from plugins import step
from plugins.fold_plan import FoldPlan
from plugins.paged_attention.reference import paged_attention


class PagedMixer:
    """A Mixer that runs `kvfold::paged_attention` and collects the caches each producer returns."""

    def __init__(self, plan: FoldPlan, constants: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self.plan = plan
        self.constants = constants
        self.inputs = inputs
        self.caches: dict[int, tuple[Tensor, Tensor]] = {}
        self.donated: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, attention: Attention, projected: Tensor) -> Tensor:
        """Head outputs [T, q] of packed QKV [T, q + 2 kv] or, for a consumer, of queries [T, q]."""
        layer = self.plan.layers[attention.layer]
        group = next(bank.group for bank in self.plan.banks if bank.layer == layer.donor)
        slots = self.inputs[step.slot_mapping(group)]
        key = value = None
        if self.plan.is_producer(attention.layer):
            caches = tuple(self.inputs[name] for name in step.cache_inputs(attention.layer))
            if any(bank.layer == attention.layer and bank.consumers for bank in self.plan.banks):
                sizes = [attention.query_size] + [attention.key_value_size] * 2
                projected, key, value = torch.split(projected, sizes, dim=-1)
                self.donated[attention.layer] = key, value
        else:
            caches = self.caches[layer.donor]
            key, value = self.donated[layer.donor]
            slots = torch.full_like(slots, -1)
        quant_type = "PER_CHANNEL" if layer.kv_dtype == "int8" else "NONE"
        output, *updated = paged_attention(
            projected,
            key,
            value,
            caches[0],
            caches[1],
            self.inputs[step.CUMULATIVE_SEQUENCE_LENGTH],
            self.inputs[step.PAST_SEQLENS],
            self.inputs[step.block_table(group)],
            self._constant("cos_cache"),
            self._constant("sin_cache"),
            slots,
            None,
            attention.q_norm.weight if attention.q_norm is not None else None,
            self._key_norm(attention, layer.donor),
            self._constant(f"key_scale_{layer.donor}") if layer.kv_dtype == "int8" else None,
            self._constant(f"value_scale_{layer.donor}") if layer.kv_dtype == "int8" else None,
            attention.num_heads,
            attention.num_key_value_heads,
            attention.head_dim**-0.5,
            0.0,
            -1 if layer.sliding_window is None else layer.sliding_window,
            layer.sink_size,
            1,
            0,
            attention.q_norm.epsilon if attention.q_norm is not None else 1e-6,
            quant_type,
            quant_type,
        )
        if self.plan.is_producer(attention.layer):
            self.caches[attention.layer] = updated[0], updated[1]
        return output

    def _constant(self, name: str) -> Tensor:
        constant: Tensor = self.constants.get_buffer(name)
        return constant

    def _key_norm(self, attention: Attention, donor: int) -> Tensor | None:
        """A consumer hands on its donor's key norm: the op takes both weights or none."""
        if attention.q_norm is None:
            return None
        weight: Tensor = self.constants.get_parameter(f"decoder.model.layers.{donor}.self_attn.k_norm.weight")
        return weight


class PagedDecoder(nn.Module):
    """A decoder plus the constants that the op reads: RoPE tables and static KV scales.

    Args:
        decoder: the folded model.
        scales: `key_scale.<layer>` and `value_scale.<layer>` for every int8 bank.
    """

    def __init__(self, decoder: Decoder, scales: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.decoder = decoder
        cos, sin = rope_tables(decoder.config)
        self.register_buffer("cos_cache", cos)
        self.register_buffer("sin_cache", sin)
        for bank in decoder.plan.banks:
            if bank.kv_dtype == "int8":
                for kind in ("key_scale", "value_scale"):
                    self.register_buffer(f"{kind}_{bank.layer}", scales[f"{kind}.{bank.layer}"])

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One step: tensors as `step.input_names(plan)`, results as `step.output_names(plan)`."""
        plan = self.decoder.plan
        inputs = dict(zip(step.input_names(plan), tensors, strict=True))
        mixer = PagedMixer(plan, self, inputs)
        hidden = self.decoder.model(inputs[step.INPUT_IDS], mixer)
        logits = self.decoder.lm_head(hidden.index_select(0, inputs[step.LOGITS_INDICES]))
        return logits, *(cache for bank in plan.banks for cache in mixer.caches[bank.layer])

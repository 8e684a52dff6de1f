"""The decoder as it is exported: one packed step over paged caches, ordered as `contract.step` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

import torch
from torch import Tensor, nn

from kvfold.export.model.decoder import Attention, Decoder
from kvfold.export.model.rope import rope_tables, select_slots
from kvfold.plugins.contract import step
from kvfold.plugins.paged_attention.reference import paged_attention
from kvfold.plugins.paged_attention.schema import INPUTS, Attributes, QuantType


class PagedMixer:
    """A Mixer that runs `kvfold::paged_attention` and collects the caches each producer returns."""

    def __init__(self, constants: PagedDecoder, inputs: Mapping[str, Tensor]) -> None:
        self.config, self.plan = constants.decoder.config, constants.decoder.plan
        self.constants = constants
        self.inputs = inputs
        self._banks = {bank.layer: bank for bank in self.plan.banks}
        self.caches: dict[int, tuple[Tensor, Tensor]] = {}
        self.donated: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, attention: Attention, projected: Tensor) -> Tensor:
        """Head outputs [T, q] of packed QKV [T, q + 2 kv] or, for a consumer, of queries [T, q]."""
        producer = self.plan.is_producer(attention.layer)
        tensors = self._produce(attention, projected) if producer else self._consume(attention, projected)
        donor = self.plan.layers[attention.layer].donor
        group = self._banks[donor].group
        tensors |= {
            "cumulative_sequence_length": self.inputs[step.CUMULATIVE_SEQUENCE_LENGTH],
            "past_seqlens": self.inputs[step.PAST_SEQLENS],
            "block_table": self.inputs[step.block_table(group)],
        }
        for kind in ("cos_cache", "sin_cache"):
            tensors[kind] = self.constants.get_buffer(self.constants.table_name(kind, donor))
        if self._banks[donor].kv_dtype == "int8":
            tensors["k_scale"] = self.constants.get_buffer(f"key_scale_{donor}")
            tensors["v_scale"] = self.constants.get_buffer(f"value_scale_{donor}")
        q_norm, _ = attention.head_norms
        if q_norm is not None:  # a consumer hands on its donor's key norm: both or none
            norm = f"decoder.model.layers.{donor}.self_attn.k_norm.weight"
            tensors |= {
                "q_norm_weight": q_norm.weight,
                "k_norm_weight": self.constants.get_parameter(norm),
            }
        if attention.sinks is not None:
            tensors["head_sink"] = attention.sinks
        attributes = astuple(self._attributes(attention))
        results = paged_attention(*(tensors.get(name) for name in INPUTS), *attributes)
        if producer:
            self.caches[attention.layer] = results[1], results[2]
        output: Tensor = results[0]
        return output

    def _produce(self, attention: Attention, projected: Tensor) -> dict[str, Tensor]:
        """Packed QKV; split where a consumer will need this layer's keys and values."""
        bank = self._banks[attention.layer]
        key_cache, value_cache = (self.inputs[name] for name in step.cache_inputs(bank.layer))
        tensors = {
            "query": projected,
            "key_cache": key_cache,
            "value_cache": value_cache,
            "slot_mapping": self.inputs[step.slot_mapping(bank.group)],
        }
        if bank.consumers:
            sizes = [attention.query_size] + [attention.key_value_size] * 2
            query, key, value = torch.split(projected, sizes, dim=-1)
            self.donated[bank.layer] = key, value
            tensors |= {"query": query, "key": key, "value": value}
        return tensors

    def _consume(self, attention: Attention, projected: Tensor) -> dict[str, Tensor]:
        """Queries over the donor's updated cache; every slot is -1, so nothing is written."""
        donor = self.plan.layers[attention.layer].donor
        slots = self.inputs[step.slot_mapping(self._banks[donor].group)]
        tensors = dict(zip(("key", "value"), self.donated[donor], strict=True))
        tensors |= zip(("key_cache", "value_cache"), self.caches[donor], strict=True)
        return tensors | {"query": projected, "slot_mapping": torch.full_like(slots, -1)}

    def _attributes(self, attention: Attention) -> Attributes:
        layer, (q_norm, _) = self.plan.layers[attention.layer], attention.head_norms
        quant_type: QuantType = "PER_CHANNEL" if layer.kv_dtype == "int8" else "NONE"
        return Attributes(
            num_heads=attention.num_heads,
            kv_num_heads=attention.num_key_value_heads,
            scale=self.config.logit_scale,
            softcap=self.config.attention_softcap,
            local_window_size=-1 if layer.sliding_window is None else layer.sliding_window,
            sink_size=layer.sink_size,
            qk_norm_epsilon=1e-6 if q_norm is None else q_norm.epsilon,
            k_quant_type=quant_type,
            v_quant_type=quant_type,
        )


class PagedDecoder(nn.Module):
    """A decoder plus the constants that the op reads: RoPE tables and static KV scales.

    Each kind of RoPE has its tables; banks whose keys turn with slots of their own have tables of their own.

    Args:
        decoder: the folded model.
        scales: `key_scale.<layer>` and `value_scale.<layer>` for every int8 bank.
    """

    def __init__(self, decoder: Decoder, scales: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.decoder = decoder
        tables = [rope_tables(decoder.config, rope) for rope in decoder.config.ropes]
        known: set[str] = set()
        for bank in decoder.plan.banks:
            slots = decoder.plan.layers[bank.layer].rope_slots
            pair = tables[decoder.config.layer_ropes[bank.layer]]
            for kind, table in zip(("cos_cache", "sin_cache"), pair, strict=True):
                name = self.table_name(kind, bank.layer)
                if name not in known:
                    self.register_buffer(name, select_slots(table, slots))
                    known.add(name)
            if bank.kv_dtype == "int8":
                for kind in ("key_scale", "value_scale"):
                    self.register_buffer(f"{kind}_{bank.layer}", scales[f"{kind}.{bank.layer}"])

    def table_name(self, kind: str, producer: int) -> str:
        """Name of the buffer with the `cos_cache` or `sin_cache` that a bank's keys turn with."""
        if self.decoder.plan.layers[producer].rope_slots is not None:
            return f"{kind}_{producer}"
        rope = self.decoder.config.layer_ropes[producer]
        return f"{kind}_rope{rope}" if rope else kind

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One step: tensors as `step.input_names(plan)`, results as `step.output_names(plan)`."""
        plan = self.decoder.plan
        inputs = dict(zip(step.input_names(plan), tensors, strict=True))
        mixer = PagedMixer(self, inputs)
        hidden = self.decoder.model(inputs[step.INPUT_IDS], mixer)
        logits = self.decoder.logits(hidden.index_select(0, inputs[step.LOGITS_INDICES]))
        return logits, *(cache for bank in plan.banks for cache in mixer.caches[bank.layer])

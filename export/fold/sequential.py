"""Fold layer by layer: each one on the inputs that the already folded model produces.

The teacher is the unfolded model, the student the folded one under its plan's windows. Both streams
stand before the same layer. A producer's statistics look ahead in the teacher, to the layers that
will read its bank: their folded inputs do not exist yet when the bank is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kvfold.export.fold.bank import BankStatistics, FoldedBank, fold_bank
from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.fold.head_sinks import HeadSinkFit, SinklessAttention, head_sink_name
from kvfold.export.fold.projections import read_heads, read_output, write_heads, write_output
from kvfold.export.fold.regression import Moments, append_one
from kvfold.export.model.decoder import Block
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import BLOCK_NORMS
from kvfold.export.model.residual_stream import ResidualStream, load_block
from kvfold.export.model.rope import magnitudes
from kvfold.plugins.contract.fold_plan import Bank, FoldPlan

# How a bank's members, given the number of stored heads, become one KV. It is the closed form, unless a
# method of `export.fold.baselines` is to be compared with that.
FoldBank = Callable[[BankStatistics, int], FoldedBank]


class SequentialFold:
    """Folds a model's layers in order.

    Attributes:
        folded: the student's weights; a layer's are final once `fold_layer` has seen it.
        settings: dials.
        errors: by folded layer, the relative error of its attention-block output before its bias, on the
            student's own inputs.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        folded: MutableMapping[str, Tensor],
        streams: tuple[ResidualStream, ResidualStream],
        settings: FoldSettings,
        method: FoldBank | None = None,
    ) -> None:
        """The streams are the teacher's and the student's; both stand before the first layer to fold."""
        self.config = config
        self.weights = weights
        self.folded = folded
        self.teacher, self.student = streams
        self.settings = settings
        self._method = method or partial(fold_bank, fit_slots=settings.rope_slots == "fitted")
        self.errors: dict[int, float] = {}
        self._factors: dict[int, tuple[Tensor, Tensor]] = {}  # of queries and values, by open bank
        self._norms = BLOCK_NORMS[config.norm_placement]
        self._teacher_block: Block | None = None
        self.student.mixer = self._sinkless = SinklessAttention(config, self.student.plan)

    def state(self, layer: int) -> dict[str, Any]:
        """What `restore` goes on from, before `layer`."""
        return {
            "layer": layer,
            "streams": [self.teacher.state(), self.student.state()],
            "plan": self.student.plan.model_dump_json(),
            "factors": self._factors,
            "errors": self.errors,
        }

    def restore(self, state: Mapping[str, Any]) -> int:
        """Stand where another fold of the same text stood; returns the layer to go on with."""
        for stream, kept in zip((self.teacher, self.student), state["streams"], strict=True):
            stream.restore(kept)
        self.student.replan(FoldPlan.model_validate_json(state["plan"]))
        self._factors, self.errors = state["factors"], state["errors"]
        layer: int = state["layer"]
        return layer

    def pass_layer(self, layer: int) -> None:
        """Move both streams past a layer whose weights stay as they are."""
        teacher, student = self._blocks(layer)
        self._attend(teacher, student)
        self._advance(teacher, student)

    def fold_layer(self, layer: int, bank: Bank) -> None:
        """Solve a layer of a folded bank and move both streams past it."""
        self._solve(layer, bank)
        self._advance(*self._blocks(layer))

    def fold_bank(self, bank: Bank) -> None:
        """Fold one bank alone; both streams stand before its producer, and end before the last one's MLP."""
        layers = bank.layers
        for layer in range(bank.layer, layers[-1]):
            if layer in layers:
                self.fold_layer(layer, bank)
            else:
                self.pass_layer(layer)
        self._solve(layers[-1], bank)

    def _solve(self, layer: int, bank: Bank) -> None:
        if layer == bank.layer:
            folded = self._method(self._bank_statistics(bank), bank.num_key_value_heads)
            self._factors[layer] = folded.query_factors, folded.value_factors
            self.student.replan(self.student.plan.with_rope_slots(layer, folded.slots))
            write_heads(self.folded, layer, "k_proj", folded.keys)
            write_heads(self.folded, layer, "v_proj", folded.values)
        self._absorb_factors(layer, bank)
        if layer == bank.layers[-1]:
            del self._factors[bank.layer]
        teacher, student = self._blocks(layer)
        self._attend(teacher, student)
        # Without o_proj's bias, which both models add alike: W_O is fitted to what the heads give.
        output = teacher.self_attn.o_proj.weight
        moments = Moments(self.student.heads.shape[-1], self.config.hidden_size)
        for rows in self.student.batches():
            target = functional.linear(self.teacher.heads[rows], output)
            share = self._share_in_stream(target)
            moments.add(self.student.heads[rows] * share, target * share)
        solved = moments.solve(student.self_attn.o_proj.weight, self.settings.ridge)
        write_output(self.folded, layer, solved)
        self.errors[layer] = moments.relative_error(solved)

    def _attend(self, teacher: Block, student: Block) -> None:
        """Head outputs of both streams; head sinks are fitted to them and put in the student's."""
        layer, size = student.self_attn.layer, self.config.head_dim
        fit = HeadSinkFit(read_output(self.folded, layer, size), read_output(self.weights, layer, size))
        has_sinks = self.student.plan.layers[layer].head_sink
        for rows in self.student.batches():
            original, folded = self.teacher.attend(teacher, rows), self.student.attend(student, rows)
            if has_sinks:
                fit.add(folded, original, self._sinkless.log_sum_exp)
        if has_sinks:
            self.folded[head_sink_name(layer)] = sinks = fit.solve()
            for rows, log_sum_exp in zip(self.student.batches(), fit.log_sum_exps, strict=True):
                share = torch.sigmoid(log_sum_exp - sinks)
                self.student.heads[rows] *= share.repeat_interleave(size, dim=-1)

    def _advance(self, teacher: Block, student: Block) -> None:
        for rows in self.student.batches():
            self.teacher.advance(teacher, rows)
            self.student.advance(student, rows)

    def _blocks(self, layer: int) -> tuple[Block, Block]:
        """The layer's block in the teacher and in the student, with its weights as they are now."""
        teacher = self._original(layer)
        # No fold changes the MLP: it is read and held once.
        return teacher, load_block(self.config, self.student.plan, self.folded, layer, teacher.mlp)

    def _original(self, layer: int) -> Block:
        """The teacher's block, kept while it is the layer at work."""
        if self._teacher_block is None or self._teacher_block.self_attn.layer != layer:
            self._teacher_block = None  # before the next one is there
            self._teacher_block = load_block(self.config, self.teacher.plan, self.weights, layer)
        return self._teacher_block

    def _read(self, layer: int, projection: str) -> Tensor:
        return read_heads(self.weights, layer, projection, self.config.head_dim)

    def _inputs(self, block: Block, rows: slice) -> Tensor:
        """What the student's projections read, [B, L, hidden_size (+ 1 with a bias)]."""
        x = block.attention_input(self.student.hidden[rows])
        return append_one(x) if self.config.attention_bias else x

    def _bank_statistics(self, bank: Bank) -> BankStatistics:
        """The bank's members in the teacher against the student's input, one layer after the other."""
        layers, size = bank.layers, self.config.head_dim
        first, length = self._original(bank.layer), self.student.hidden.shape[1]
        sizes = magnitudes(self.config, self.teacher.plan, bank.layer)
        angles = torch.cat([x[:length] / sizes for x in self.teacher.mixer.table(bank.layer)], dim=-1)
        ahead = self.teacher.fork(self.teacher.plan) if bank.consumers else self.teacher
        members, block = [], first
        for layer in range(bank.layer, layers[-1] + 1):
            if layer > bank.layer:
                for rows in ahead.batches():
                    ahead.attend(block, rows)
                    ahead.advance(block, rows)
                del block  # before the next one is there
                block = load_block(self.config, self.teacher.plan, self.weights, layer)
            if layer in layers:
                members.append(self._member_statistics(ahead, block, first))
        rotation = Moments(self.config.hidden_size + self.config.attention_bias, size)
        for rows in self.student.batches():
            x = self._inputs(first, rows)
            rotation.add(x, angles.expand(*x.shape[:-1], -1))
        predicted, powers = (torch.stack(parts) for parts in zip(*members, strict=True))
        cos, sin = (rotation.cross.T / rotation.tokens).chunk(2)
        return BankStatistics(
            keys=predicted[:, 0],
            values=predicted[:, 1],
            gram=rotation.gram / rotation.tokens,
            rotated_mean=torch.complex(cos, sin),
            # A logit holds both lengths that RoPE gives a pair, so its power holds their fourth power.
            query_power=self._by_original_head(
                (powers[..., : size // 2] + powers[..., size // 2 :]) * sizes**4
            ),
            output_metric=self._output_metric(layers),
        )

    def _member_statistics(self, ahead: ResidualStream, block: Block, first: Block) -> tuple[Tensor, Tensor]:
        """Of the teacher's block that `ahead` stands before, from the student's input of the bank's `first`.

        Keys and values [2, heads, head_dim, inputs] regressed from that, and the power of each channel of the
        queries [heads, head_dim].
        """
        layer, size = block.self_attn.layer, self.config.head_dim
        prior = torch.stack([self._read(layer, "k_proj"), self._read(layer, "v_proj")]).flatten(0, 2)
        moments = Moments(prior.shape[1], prior.shape[0])
        power = torch.zeros(block.self_attn.query_size, dtype=torch.float64)
        for rows in self.student.batches():
            queries, keys_values = ahead.project(block, rows).tensor_split([len(power)], dim=-1)
            moments.add(self._inputs(first, rows), keys_values)
            power += queries.square().sum((0, 1))
        predicted = moments.solve(prior, self.settings.ridge)
        return predicted.reshape(2, -1, size, prior.shape[1]), power.reshape(-1, size)

    def _share_in_stream(self, output: Tensor) -> Tensor:
        """What an error of attention-block outputs [..., hidden] counts for: a norm behind shrinks it."""
        if self._norms.attention_output is None:
            return output.new_ones(())
        return torch.rsqrt(output.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)

    def _output_metric(self, layers: tuple[int, ...]) -> Tensor:
        output = torch.stack([read_output(self.weights, layer, self.config.head_dim) for layer in layers])
        if norm := self._norms.attention_output:
            scales = [self.weights[f"model.layers.{layer}.{norm}.weight"].double() for layer in layers]
            output = output * torch.stack(scales)[:, None, :, None]
        return self._by_original_head(output.mT @ output)

    def _by_original_head(self, x: Tensor) -> Tensor:
        """Sum [n, query heads, ...] over the query heads of each original KV head."""
        return x.reshape(len(x), self.config.num_key_value_heads, -1, *x.shape[2:]).sum(2)

    def _absorb_factors(self, layer: int, bank: Bank) -> None:
        """W_Q takes the layer's query factors, W_O its value factors.

        The queries are first regressed from the student's input, like everything a fold keeps.
        """
        index = bank.layers.index(layer)
        repeats = self.config.num_attention_heads // self.config.num_key_value_heads
        query_factors, value_factors = (
            factors[index].repeat_interleave(repeats, 0) for factors in self._factors[bank.layer]
        )
        queries, block = self._read(layer, "q_proj"), self._original(layer)
        moments = Moments(queries.shape[-1], queries.shape[0] * queries.shape[1])
        for rows in self.student.batches():
            projected = self.teacher.project(block, rows)
            moments.add(self._inputs(block, rows), projected[..., : block.self_attn.query_size])
        solved = moments.solve(queries.flatten(0, 1), self.settings.ridge).reshape(queries.shape)
        write_heads(self.folded, layer, "q_proj", query_factors @ solved)
        output = read_output(self.weights, layer, self.config.head_dim) @ value_factors
        write_output(self.folded, layer, output.transpose(0, 1).flatten(1))

"""A learned logit per query head in place of what a window hides.

A pretrained head parks weight on the first tokens; where a window hides them, that weight falls on the
tokens in sight. With v the log-sum-exp of a query's visible logits and o its output, a head sink of logit z
gives sigmoid(v - z) o. So z costs one number per query to fit: it is the one that brings the head's part of
the block's output nearest to the original's, over queries that the window hides tokens from and others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvfold.export.model.dense_attention import DenseAttention, attend_softly, visible
from kvfold.plugins.contract.fold_plan import LayerPlan

# Logits around the median query's v that are searched: its sink takes between 0.1 % and 99.9 % of the
# weight. Beyond that healing could hardly move it any more.
SPAN = 7.0
SPACINGS = (0.25, 0.02)

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def head_sink_name(layer: int) -> str:
    """Name of a layer's head sinks among the weights."""
    return f"model.layers.{layer}.self_attn.sinks"


class SinklessAttention(DenseAttention):
    """A Mixer that leaves head sinks out and keeps what is needed to put them in.

    Attributes:
        log_sum_exp: of the visible logits of the last layer that has head sinks, [B, L, heads].
    """

    log_sum_exp: Tensor

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, layer: LayerPlan, head_sink: Tensor | None
    ) -> Tensor:
        """As DenseAttention's, without the sink."""
        if head_sink is None:
            return super().attend(query, keys, values, layer, None)
        mask, scale = visible(query.shape[2], layer.sliding_window, layer.sink_size), self.config.logit_scale
        if softcap := self.config.attention_softcap:
            capped, log_sum_exp = attend_softly(query, keys, values, mask, scale, softcap)
            self.log_sum_exp = log_sum_exp.transpose(1, 2)
            return capped
        if mask is not None:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        group = query.shape[1] // keys.shape[1]
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        output: Tensor
        output, log_sum_exp = _attend(query, keys, values, 0.0, mask is None, attn_mask=mask, scale=scale)
        self.log_sum_exp = log_sum_exp.transpose(1, 2)
        return output


class HeadSinkFit:
    """Fits one layer's head sinks; memory is three float32 a token and head.

    Attributes:
        log_sum_exps: as added, a tensor [B, L, heads] a batch.
    """

    def __init__(self, student_output: Tensor, teacher_output: Tensor) -> None:
        """W_O of the student and of the original, by head: [heads, hidden_size, head_dim]."""
        self.log_sum_exps: list[Tensor] = []
        self._powers: list[Tensor] = []
        self._products: list[Tensor] = []
        self._of_student = (student_output.mT @ student_output).float()
        self._of_both = (student_output.mT @ teacher_output).float()

    def add(self, student: Tensor, teacher: Tensor, log_sum_exp: Tensor) -> None:
        """Add tokens: head outputs [B, L, heads * head_dim], the student's without sinks."""
        student, teacher = (x.reshape(*log_sum_exp.shape, -1) for x in (student, teacher))
        self.log_sum_exps.append(log_sum_exp)
        self._powers.append(torch.einsum("blhd,hde,blhe->blh", student, self._of_student, student))
        self._products.append(torch.einsum("blhd,hde,blhe->blh", student, self._of_both, teacher))

    def solve(self) -> Tensor:
        """The logits [heads], float32: min over z of sum |W' s o - W t|^2, s = sigmoid(v - z)."""
        v, power, product = (
            torch.cat(x).flatten(0, 1) for x in (self.log_sum_exps, self._powers, self._products)
        )
        best, reach = v.median(0).values, SPAN
        for spacing in SPACINGS:
            candidates = best + torch.arange(-reach, reach + spacing / 2, spacing)[:, None]
            errors = [
                (share * (share * power - 2 * product)).mean(0)
                for share in (torch.sigmoid(v - z) for z in candidates)
            ]
            best = candidates.gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]
            reach = spacing
        return best

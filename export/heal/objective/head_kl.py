"""KL divergence through a frozen head; its gradient, where asked for, at once, so that no logits are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvfold.export.model.decoder import cap_logits
from kvfold.export.model.fused import fused

ROWS = (
    256  # positions whose logits exist at a time on a CPU: enough to make good use of each read of the head
)
ROWS_IN_CACHE = 8  # of which so many are made into probabilities at a time
LOGIT_BYTES = 512 << 20  # of one model's logits that exist at a time on a GPU


class _HeadKL(torch.autograd.Function):
    """The gradient of KL(p || q) by q's logits is q - p (row by row), so forward has it already."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, head: Tensor, student_head: Tensor, softcap: float
    ) -> Tensor:
        total = student.new_zeros((), dtype=torch.float64)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        at_a_time, in_cache = _rows(head)
        for start in range(0, len(student), at_a_time):
            rows = slice(start, start + at_a_time)
            q = student[rows].to(student_head.dtype) @ student_head.T
            p = teacher[rows].to(head.dtype) @ head.T
            for ours, theirs in zip(torch.split(q, in_cache), torch.split(p, in_cache), strict=True):
                total += _divergence(ours, theirs, softcap, gradient is not None).double().sum()
            if gradient is not None:
                gradient[rows] = (q @ student_head).float()
        if gradient is not None:
            ctx.save_for_backward(gradient / len(student))
        return (total / len(student)).float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None


def _rows(head: Tensor) -> tuple[int, int]:
    """How many rows of logits exist at a time, and are made into probabilities at a time."""
    if head.device.type == "cpu":
        return ROWS, ROWS_IN_CACHE
    on_gpu = max(1, LOGIT_BYTES // (len(head) * head.itemsize))
    return on_gpu, on_gpu


@fused
def _divergence(ours: Tensor, theirs: Tensor, softcap: float, wants_gradient: bool) -> Tensor:
    """KL(theirs || ours) of each row of logits [rows, vocab], float32; its gradient takes `ours`' place.

    Capped logits pass 1 - (capped / softcap)^2 of the gradient on.
    """
    capped, target = (cap_logits(logits.float(), softcap) for logits in (ours, theirs))
    log_q, log_p = capped.log_softmax(-1), target.log_softmax(-1)
    exact = log_p.exp()
    divergence: Tensor = torch.linalg.vecdot(exact, log_p - log_q)
    if wants_gradient:
        passed = log_q.exp() - exact
        ours.copy_(passed * (1 - (capped / softcap).square()) if softcap else passed)
    return divergence


def head_kl(
    student: Tensor,
    teacher: Tensor,
    head: Tensor,
    student_head: Tensor | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """Mean KL(teacher || student) in nat a row; no head takes a gradient.

    Args:
        student: final hidden states [rows, hidden_size]; float32 where a gradient is asked for.
        teacher: the original's, the same shape, of any float dtype.
        head: lm_head weight [vocab, hidden_size], in the dtype to multiply in.
        student_head: the student's, where it has another.
        softcap: logits of both become softcap * tanh(logits / softcap); 0 is off.
    """
    student_head = head if student_head is None else student_head
    loss: Tensor = _HeadKL.apply(  # type: ignore[no-untyped-call]  # torch has no annotation for it
        student, teacher, head, student_head, softcap
    )
    return loss

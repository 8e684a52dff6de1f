"""Profiles: which of a plan's two optimisation profiles takes a step, or why none does."""

from __future__ import annotations

from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.cuda.step_shape import StepShape
from kvfold.runtime.engine.engine_config import TensorRTFacts

DECODE = 0
PREFILL = 1


def choose_profile(shape: StepShape, facts: TensorRTFacts, plan: FoldPlan) -> int:
    """Decode where each sequence has one new token, else prefill.

    The plugin and its kernels make the same choice by the same rule (`plugins.cuda.launches.Shapes`).

    Raises:
        TargetError: the step is larger than the profile takes.
    """
    profile = DECODE if shape.decodes else PREFILL
    limits = facts.decode if profile == DECODE else facts.prefill
    _check(shape.sequences, limits.max_sequences, "sequences", "max_num_seqs")
    _check(shape.tokens, limits.max_tokens, "tokens", "max_num_batched_tokens")
    _check(shape.rows, limits.max_logits, "rows of logits", "max_num_seqs")
    for group, width in zip(plan.groups, shape.table_widths, strict=True):
        if width > limits.max_table_width[group.name]:
            raise TargetError(
                f"a sequence has {width} pages in group {group.name}, this plan takes "
                f"{limits.max_table_width[group.name]}; keep sequences within the context length"
            )
    return profile


def check_batch(facts: TensorRTFacts, max_num_batched_tokens: int, max_num_seqs: int) -> None:
    """See, before anything runs, that no step of these batch sizes is larger than the plan takes.

    Raises:
        TargetError: one might be.
    """
    limits = facts.prefill
    _check(max_num_batched_tokens, limits.max_tokens, "tokens", "max_num_batched_tokens")
    _check(max_num_seqs, min(limits.max_sequences, facts.decode.max_sequences), "sequences", "max_num_seqs")


def _check(size: int, limit: int, what: str, option: str) -> None:
    if size > limit:
        raise TargetError(
            f"a step of {size} {what}, this plan takes {limit}; lower {option} of RuntimeConfig, or build "
            f"with a larger tensorrt.{option} in the recipe"
        )

"""The steps a plan takes: limits of its two profiles, and the shapes that the builder is given for them."""

from __future__ import annotations

from kvfold.pipeline.build.tensorrt.build_job import ShapeRange
from kvfold.pipeline.recipe.recipe import TensorRTSection
from kvfold.plugins.contract import step
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.engine_config import StepLimits

# A typical step, which tactics are chosen for: that of a small server.
TYPICAL_SEQUENCES = 8
TYPICAL_TOKENS = 512
TYPICAL_CONTEXT = 2_048
# A KV pool is one tensor; its elements are counted in 31 bits.
MAX_POOL_ELEMENTS = 2**31 - 1


def decode_limits(section: TensorRTSection, plan: FoldPlan, max_context_length: int) -> StepLimits:
    """One new token of each sequence."""
    return StepLimits(
        max_tokens=section.max_num_seqs,
        max_sequences=section.max_num_seqs,
        max_table_width=_table_widths(plan, max_context_length),
        max_logits=section.max_num_seqs,
    )


def prefill_limits(
    section: TensorRTSection, plan: FoldPlan, max_context_length: int, all_rows: int
) -> StepLimits:
    """Chunks of prompts beside decoded tokens, up to the token budget.

    Generation wants a row of logits a sequence. Validation alone wants `all_rows`, those of its whole chunk.
    """
    return StepLimits(
        max_tokens=section.max_num_batched_tokens,
        max_sequences=section.max_num_seqs,
        max_table_width=_table_widths(plan, max_context_length),
        max_logits=max(section.max_num_seqs, all_rows),
    )


def max_pages(plan: FoldPlan) -> dict[str, int]:
    """Most pages of each group's pool."""
    return {
        group.name: min(
            MAX_POOL_ELEMENTS // (plan.page_size * bank.num_key_value_heads * bank.head_dim)
            for bank in group.banks
        )
        for group in plan.groups
    }


def _table_widths(plan: FoldPlan, max_context_length: int) -> dict[str, int]:
    """A column for every page of the longest sequence; those that left a window stay as -1."""
    return dict.fromkeys((group.name for group in plan.groups), -(-max_context_length // plan.page_size))


def profile_shapes(plan: FoldPlan, limits: StepLimits) -> dict[str, ShapeRange]:
    """Smallest, typical and largest shape of every graph input of a profile."""
    tokens = (1, min(TYPICAL_TOKENS, limits.max_tokens), limits.max_tokens)
    sequences = (1, min(TYPICAL_SEQUENCES, limits.max_sequences), limits.max_sequences)
    if limits.max_tokens == limits.max_sequences:  # decoding
        tokens = sequences
    shapes: dict[str, ShapeRange] = {
        step.INPUT_IDS: _vary(tokens),
        step.CUMULATIVE_SEQUENCE_LENGTH: _vary((2, sequences[1] + 1, sequences[2] + 1)),
        step.PAST_SEQLENS: _vary(sequences),
        step.LOGITS_INDICES: _vary((1, sequences[1], limits.max_logits)),
    }
    for group in plan.groups:
        widest = limits.max_table_width[group.name]
        widths = (1, min(TYPICAL_CONTEXT // plan.page_size, widest), widest)
        shapes[step.block_table(group.name)] = _vary(sequences, widths)
        shapes[step.slot_mapping(group.name)] = _vary(tokens)
    pages = max_pages(plan)
    typical_pages = TYPICAL_SEQUENCES * TYPICAL_CONTEXT // plan.page_size
    for bank in plan.banks:
        counts = (1, min(typical_pages, pages[bank.group]), pages[bank.group])
        page = (plan.page_size, bank.num_key_value_heads, bank.head_dim)
        for name in step.cache_inputs(bank.layer):
            shapes[name] = _vary(counts, *((size,) * 3 for size in page))
    return shapes


def _vary(*dimensions: tuple[int, int, int]) -> ShapeRange:
    """Dimensions, each as (smallest, typical, largest), to shapes."""
    smallest, typical, largest = zip(*dimensions, strict=True)
    return smallest, typical, largest

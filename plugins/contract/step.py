"""The step contract: the file of an exported graph, names, types and shapes of its inputs and outputs.

Export writes a graph with exactly these names and the runtime binds them, so both read them here.
One step runs T new tokens of B sequences, packed without padding; the logits of R rows come back.
Positions are no input: the attention op derives them from `past_seqlens`.

    input_ids                    int64 [T]
    cumulative_sequence_length   int32 [B + 1]   new tokens before each sequence, then T
    past_seqlens                 int32 [B]       tokens of each sequence already in the cache
    block_table.<group>          int32 [B, M_group]  page ids in order of position; -1: freed or unused
    slot_mapping.<group>         int32 [T]       page id * page_size + offset; -1: do not write
    logits_indices               int64 [R]       rows of T whose logits are wanted
    key_cache.<layer>            [pages of the group, page_size, KV heads, head_dim]
    value_cache.<layer>          the same; one pair per bank, named by its producer layer
    logits                       float32 [R, vocab_size]
    key_cache_out.<layer>, value_cache_out.<layer>   alias their inputs
"""

from __future__ import annotations

from kvfold.plugins.contract.fold_plan import FoldPlan

MODEL_FILE = "model.onnx"
DATA_SUFFIX = ".data"  # of the file beside a graph that holds its tensors
INPUT_IDS = "input_ids"
CUMULATIVE_SEQUENCE_LENGTH = "cumulative_sequence_length"
PAST_SEQLENS = "past_seqlens"
LOGITS_INDICES = "logits_indices"
LOGITS = "logits"


def block_table(group: str) -> str:
    """Input name of a group's block table."""
    return f"block_table.{group}"


def slot_mapping(group: str) -> str:
    """Input name of a group's slot mapping."""
    return f"slot_mapping.{group}"


def cache_inputs(layer: int) -> tuple[str, str]:
    """Input names of the key and value cache that producer `layer` owns."""
    return f"key_cache.{layer}", f"value_cache.{layer}"


def cache_outputs(layer: int) -> tuple[str, str]:
    """Output names of the key and value cache that producer `layer` owns."""
    return f"key_cache_out.{layer}", f"value_cache_out.{layer}"


def input_names(plan: FoldPlan) -> list[str]:
    """All graph inputs of a plan, in the order in which the graph declares them."""
    names = [INPUT_IDS, CUMULATIVE_SEQUENCE_LENGTH, PAST_SEQLENS, LOGITS_INDICES]
    for group in plan.groups:
        names += [block_table(group.name), slot_mapping(group.name)]
    for bank in plan.banks:
        names += cache_inputs(bank.layer)
    return names


def output_names(plan: FoldPlan) -> list[str]:
    """All graph outputs of a plan, in order."""
    return [LOGITS, *(name for bank in plan.banks for name in cache_outputs(bank.layer))]

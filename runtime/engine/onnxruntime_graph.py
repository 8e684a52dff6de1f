"""What an engine's graph declares to ONNX Runtime, held against the plan that it is said to be of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnxruntime as ort

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.fold_plan import Bank, KvDtype
from kvfold.runtime.engine.protocol import EngineInfo

# Element type, and sizes; None is an axis that varies from step to step.
Declared = tuple[str, tuple[int | None, ...]]

_IDS, _COUNTS, _LOGITS = "tensor(int64)", "tensor(int32)", "tensor(float)"
_CACHES: dict[KvDtype, str] = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int8": "tensor(int8)",
}


def check_graph(path: Path, session: ort.InferenceSession, info: EngineInfo) -> None:
    """See that the graph takes and returns what `plugins.contract.step` says of the engine's plan.

    Raises:
        BundleError: an input or output is missing, unknown, or of another type or size; it is named.
    """
    for kind, found, expected in (
        ("input", session.get_inputs(), _inputs(info)),
        ("output", session.get_outputs(), _outputs(info)),
    ):
        declared = {tensor.name: _declared(tensor) for tensor in found}
        for name in sorted(declared.keys() | expected.keys()):
            if declared.get(name) != expected.get(name):
                raise BundleError(
                    f"{path} has {kind} {name}: {_describe(declared.get(name))}, its plan and facts ask for "
                    f"{_describe(expected.get(name))}; build the engine again with `kvfold build`"
                )


def _inputs(info: EngineInfo) -> dict[str, Declared]:
    tensors: dict[str, Declared] = {
        contract.INPUT_IDS: (_IDS, (None,)),
        contract.CUMULATIVE_SEQUENCE_LENGTH: (_COUNTS, (None,)),
        contract.PAST_SEQLENS: (_COUNTS, (None,)),
        contract.LOGITS_INDICES: (_IDS, (None,)),
    }
    for group in info.plan.groups:
        tensors[contract.block_table(group.name)] = (_COUNTS, (None, None))
        tensors[contract.slot_mapping(group.name)] = (_COUNTS, (None,))
    for bank in info.plan.banks:
        tensors |= _caches(info, contract.cache_inputs(bank.layer), bank)
    return tensors


def _outputs(info: EngineInfo) -> dict[str, Declared]:
    tensors: dict[str, Declared] = {contract.LOGITS: (_LOGITS, (None, info.vocab_size))}
    for bank in info.plan.banks:
        tensors |= _caches(info, contract.cache_outputs(bank.layer), bank)
    return tensors


def _caches(info: EngineInfo, names: Iterable[str], bank: Bank) -> dict[str, Declared]:
    sizes = (None, info.plan.page_size, bank.num_key_value_heads, bank.head_dim)
    return dict.fromkeys(names, (_CACHES[bank.kv_dtype], sizes))


def _declared(tensor: ort.NodeArg) -> Declared:
    return tensor.type, tuple(size if isinstance(size, int) else None for size in tensor.shape)


def _describe(declared: Declared | None) -> str:
    if declared is None:
        return "nothing"
    element, sizes = declared
    return f"{element} [{', '.join('any' if size is None else str(size) for size in sizes)}]"

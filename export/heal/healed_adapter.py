"""The adapter: all that folding and healing changed, small enough to ship, with what it belongs to.

A tensor is stored whole under its own name, or as factors and a low-rank change (`low_rank`). Merging
computes in float64 and rounds to float16, so a machine's order of summation does not show: the
same base and adapter give the same bytes everywhere, without calibration text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvfold.export.fold.fold import added_names
from kvfold.export.heal.student.low_rank import FACTORS, LEFT, RIGHT, anchor
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.weights.changed_weights import ChangedWeights, dropped_names
from kvfold.plugins.contract.errors import AdapterError
from kvfold.plugins.contract.fold_plan import FoldPlan

METADATA = "kvfold_adapter"
FORMAT = "2"


@dataclass(frozen=True)
class Adapter:
    """An adapter as read.

    Attributes:
        plan: the plan that it was asked for, with the RoPE slots that its keys turn with.
        tensors: by name, float16.
    """

    plan: FoldPlan
    tensors: dict[str, Tensor]


def plan_hash(plan: FoldPlan) -> str:
    """sha256 of what a plan asks of the weights.

    That is neither its page size nor how its caches are stored; RoPE slots are the fold's answer. A plan
    without head sinks keeps the hash that it had before there were any.
    """
    parts = plan.model_dump(mode="json", exclude={"page_size"})
    for layer in parts["layers"]:
        del layer["kv_dtype"], layer["rope_slots"]
        if not layer["head_sink"]:
            del layer["head_sink"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def merge(
    config: ModelConfig, base: Mapping[str, Tensor], plan: FoldPlan, adapter: Mapping[str, Tensor]
) -> ChangedWeights:
    """Weights under `plan`, Hugging Face names, of the unfolded weights and an adapter's tensors.

    Each is merged when it is read, none is held.
    """
    return ChangedWeights(base, AdaptedTensors(config, base, plan, adapter), dropped_names(plan))


class AdaptedTensors(Mapping[str, Tensor]):
    """The tensors that an adapter changes, float16, by name in the model; each is merged when it is read."""

    def __init__(
        self,
        config: ModelConfig,
        base: Mapping[str, Tensor],
        plan: FoldPlan,
        adapter: Mapping[str, Tensor],
    ) -> None:
        """Arguments as `merge`'s."""
        self._config, self._base, self._plan, self._adapter = config, base, plan, adapter
        dropped = dropped_names(plan)
        known = [name for name in base if name not in dropped] + added_names(plan)
        self._names = dict.fromkeys(n for n in known if n in adapter or n + LEFT in adapter)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._adapter:
            return self._adapter[name].half()
        change = self._adapter[name + LEFT].double() @ self._adapter[name + RIGHT].double()
        factors = self._adapter[name + FACTORS]
        return (anchor(name, self._base[name], factors, self._config, self._plan) + change).half()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_adapter(path: Path, adapter: Mapping[str, Tensor], base: str, plan: FoldPlan) -> None:
    """Write an adapter in float16; `base` is the checkpoint's fingerprint."""
    slots = {bank.layer: plan.layers[bank.layer].rope_slots for bank in plan.banks}
    belongs_to = {"format": FORMAT, "base": base, "plan": plan_hash(plan), "rope_slots": slots}
    # One entry: safetensors writes several in an order that changes from run to run.
    metadata = {METADATA: json.dumps(belongs_to)}
    save_file({name: tensor.half().contiguous() for name, tensor in adapter.items()}, path, metadata)


def load_adapter(path: Path, base: str, plan: FoldPlan) -> Adapter:
    """The adapter of a file, for a checkpoint's fingerprint and the plan of a recipe.

    Raises:
        AdapterError: no such file, damaged, of another format, for another base model or another plan.
    """
    try:
        with safe_open(path, "pt") as file:
            belongs_to = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"adapter {path} cannot be read: {error}; check the path, or heal again"
        ) from error
    _require(path, "format", belongs_to, FORMAT, "make it again with this kvfold")
    _require(path, "base", belongs_to, base, "use it with the very checkpoint that it was trained on")
    _require(path, "plan", belongs_to, plan_hash(plan), "use it with the plan that it was trained for")
    for layer, slots in belongs_to["rope_slots"].items():
        plan = plan.with_rope_slots(int(layer), slots and tuple(slots))
    return Adapter(plan, tensors)


def _require(path: Path, key: str, belongs_to: Mapping[str, str], expected: str, action: str) -> None:
    if (given := belongs_to.get(key, "none")) != expected:
        raise AdapterError(f"adapter {path} is for {key} {given:.24}, this one is {expected:.24}; {action}")

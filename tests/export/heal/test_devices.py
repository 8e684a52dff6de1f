"""Healing's tensors meet on one device: shown on `meta`, whose tensors have a device and no data."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvfold.export.heal.healing import Healing
from kvfold.export.heal.objective.losses import EndToEndLoss, LayerwiseLoss
from kvfold.export.heal.starting_point import adapter_form
from kvfold.export.heal.student.student import TrainedModel
from kvfold.export.heal.training.optimizer import Optimizer
from kvfold.export.heal.training.passes import Passes
from kvfold.export.heal.training.schedule import ByUpdates
from kvfold.export.heal.training.train import Step, backward
from tests.export.heal.tiny_healing import SETTINGS, TEXT, TOKENS, tiny_healing

META = torch.device("meta")
ROWS = torch.tensor([0, 3, 5])


class OneDevice(TorchDispatchMode):
    """Refuses operations, but copies, whose tensors are on several devices; as on a GPU, numbers may be."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotation for it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) <= 1 or "copy" in func.__name__, f"{func} of tensors on {devices}"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Healing takes `meta`, which has no autocast and whose losses have no value, for its device."""
    monkeypatch.setattr("kvfold.export.heal.student.student.training_device", lambda: META)
    monkeypatch.setattr("kvfold.export.heal.student.student.matmul_dtype", lambda _: torch.float32)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    item = Tensor.item
    monkeypatch.setattr(Tensor, "item", lambda tensor: 1.0 if tensor.is_meta else item(tensor))


def test_tensors_on_two_devices_are_noticed() -> None:
    with OneDevice(), pytest.raises(AssertionError, match="of tensors on"):
        torch.zeros(2, 2, device=META) @ torch.zeros(2, 2)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("head_sink", [False, True])
@pytest.mark.parametrize("in_int8", [False, True])
def test_an_update_stays_on_the_device(head_sink: bool, in_int8: bool) -> None:
    healing, folded = tiny_healing(head_sink=head_sink)
    form = adapter_form(healing.config, healing.base, folded, healing.plan, TOKENS, SETTINGS.rank)
    int8 = healing.deploy(form) if in_int8 else None
    with OneDevice():
        student = healing.student(form, int8)
        optimizer = Optimizer(student.parameters)
        for loss in losses(healing, student):
            step = Step("step", ByUpdates(1), 1e-3, 0, TEXT, student.parameters, loss)
            backward(step, ROWS, Passes.on(META), optimizer)
            gradients = [tensor.grad for tensor in student.parameters.values()]
            assert any(gradient is not None for gradient in gradients)
            assert all(gradient is None or gradient.device == META for gradient in gradients)
            optimizer.step(1e-3)


def losses(healing: Healing, student: TrainedModel) -> list[LayerwiseLoss | EndToEndLoss]:
    """Those of all steps."""
    teacher = healing.teacher()
    end_to_end = EndToEndLoss(teacher, student, healing.head, TEXT, scored=0.25, seed=0)
    return [end_to_end] if student.int8 else [LayerwiseLoss(teacher, student, TEXT), end_to_end]

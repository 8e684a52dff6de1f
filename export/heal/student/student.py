"""The folded model in training: frozen tensors in the matmul dtype, float32 masters of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kvfold.export.heal.student.int8_deployment import Int8Deployment
from kvfold.export.heal.student.int8_rounding import Int8Linear
from kvfold.export.heal.student.low_rank import FACTORS, LEFT, RIGHT, anchor
from kvfold.export.heal.student.training_attention import TrainingAttention
from kvfold.export.model.decoder import Backbone, pack
from kvfold.export.model.matmul_dtype import matmul_dtype, training_device
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.fake_int8_linear import round_embedding
from kvfold.export.quantize.precision import rounds_embedding
from kvfold.plugins.contract.fold_plan import FoldPlan

Result = TypeVar("Result")


class TrainedModel:
    """A model whose weights are functions of the parameters that an optimiser changes.

    Matrices multiply in the machine's fastest dtype; the residual stream, norms and masters are float32.
    Under an `Int8Deployment` what is deployed in int8 rounds as it will: linears and caches.

    Attributes:
        parameters: by their names in the adapter, float32, those that are trained. None for a teacher.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: FoldPlan,
        weights: Mapping[str, Tensor],
        form: Mapping[str, Tensor] | None = None,
        int8: Int8Deployment | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Weights with Hugging Face names, in which a `form` replaces those that are trained.

        It computes on `device`, by default a GPU where there is one.

        Weights of a factored tensor must be the unfolded model's.
        """
        self.config, self.plan = config, plan
        self.device = device or training_device()
        self.dtype = matmul_dtype(self.device)
        self.int8 = int8.to(self.device) if int8 else None
        form = form or {}
        self._rounded = int8.rounded_tensors(weights) if int8 else set()
        self.parameters = {
            name: tensor.to(self.device, copy=True).requires_grad_()
            for name, tensor in form.items()
            if not name.endswith(FACTORS)
        }
        self._anchors = {
            name: anchor(name, weights[name], form[name + FACTORS], config, plan).float().to(self.device)
            for name in weights
            if name + FACTORS in form
        }
        self._frozen = _pack_backbone(
            {
                name: self._in_use(name, tensor)
                for name, tensor in weights.items()
                if name not in self._anchors and name not in form and not name.startswith("lm_head.")
            }
        )
        with torch.device("meta"):
            backbone = Backbone(config, plan)
        self._caller = _Caller(backbone)
        with self.device:
            self._mixer = TrainingAttention(config, plan, self.int8.kv_scales if self.int8 else None)
        if self.int8:
            with self.device:
                self._round_linears(backbone, self.int8)

    def mixer(self) -> TrainingAttention:
        """A fresh Mixer for one pass."""
        return self._mixer.fresh()

    def call(self, function: Callable[[Backbone], Result]) -> Result:
        """`function` of the backbone with the parameters' present values; gradients reach them."""
        weights: dict[str, Tensor] = {}
        for name, fixed in self._anchors.items():
            change = self.parameters[name + LEFT] @ self.parameters[name + RIGHT]
            weights[name] = self._in_use(name, fixed + change)
        for name, parameter in self.parameters.items():
            if not name.endswith((LEFT, RIGHT)):
                weights[name] = self._in_use(name, parameter)
        packed = self._frozen | _pack_backbone(weights)
        rounds = self.dtype != torch.float32
        with self.device, torch.autocast(self.device.type, self.dtype, enabled=rounds):
            result: Result = functional_call(self._caller, packed, (function,))
        return result

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final hidden states [B, L, hidden_size] of tokens [B, L], float32, on the model's device."""
        tokens = tokens.to(self.device)
        hidden: Tensor = self.call(lambda backbone: backbone(tokens, self.mixer()))
        return hidden.float()

    def _in_use(self, name: str, tensor: Tensor) -> Tensor:
        """Matrices in the matmul dtype, unless int8 rounds them; norms and biases as they are."""
        if name == "model.embed_tokens.weight":
            rounds = self.int8 is not None and rounds_embedding(self.int8.precision)
            return (round_embedding(tensor) if rounds else tensor).to(self.device)
        matrix = tensor.ndim == 2 and name not in self._rounded
        return tensor.to(self.device, self.dtype if matrix else None)

    def _round_linears(self, backbone: Backbone, int8: Int8Deployment) -> None:
        """Put an Int8Linear in place of each that is deployed as one; it keeps a frozen weight rounded."""
        for path, linear in list(backbone.named_modules()):
            if not isinstance(linear, nn.Linear):
                continue
            rounding = int8.rounding(f"model.{path}", linear.in_features)
            if rounding is not None:
                frozen = self._frozen.pop(f"backbone.{path}.weight", None)
                backbone.set_submodule(path, Int8Linear(linear, rounding, self.dtype, frozen))


def _pack_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's names below `_Caller`; a layer's parallel projections are trained or frozen together."""
    return {"backbone" + name.removeprefix("model"): tensor for name, tensor in pack(weights).items()}


class _Caller(nn.Module):
    """Lets `functional_call` run any function of the backbone, not its forward alone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, function: Callable[[Backbone], Result]) -> Result:
        """What the function returns."""
        return function(self.backbone)

"""The calibrated model in PyTorch as it is deployed: what the engine's quality is measured against."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import Parameter

from kvfold.export.model.decoder import Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.calibrate import Calibrated
from kvfold.export.quantize.fake_int8_linear import FakeInt8Linear, round_embedding
from kvfold.export.quantize.int4.fake_int4_linear import FakeInt4Linear
from kvfold.export.quantize.int4.stored_blocks import StoredBlocks
from kvfold.export.quantize.precision import Precision, rounds_embedding
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.int8_linear.schema import ActivationBits


class FakeQuantizedDecoder(nn.Module):
    """The calibrated model in PyTorch: linears, embedding and KV as deployed, the rest in float32."""

    def __init__(self, config: ModelConfig, plan: FoldPlan, calibrated: Calibrated) -> None:
        super().__init__()
        self.decoder = Decoder.from_weights(config, plan, calibrated.weights)
        self.scales = calibrated.scales
        blocks = StoredBlocks(calibrated.precision, calibrated.blocks)
        if rounds_embedding(calibrated.precision.precision):
            table = self.decoder.model.embed_tokens
            table.weight = Parameter(round_embedding(table.weight.data), requires_grad=False)
        for name, linear in calibrated.precision.linears.items():
            if linear.precision != "float32":
                module = self.decoder.get_submodule(name)
                assert isinstance(module, nn.Linear), f"{name} is no linear of the decoder"
                self.decoder.set_submodule(name, fake_linear(name, module, linear.precision, blocks))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [B, L, vocab] of whole sequences [B, L]."""
        mixer = DenseAttention(self.decoder.config, self.decoder.plan, self.scales)
        logits: Tensor = self.decoder(input_ids, mixer)
        return logits


def fake_linear(name: str, module: nn.Linear, precision: Precision, blocks: StoredBlocks) -> nn.Module:
    """A linear as it runs in a precision below float32."""
    bits: ActivationBits = 16 if precision.endswith("_a16") else 8
    if precision.startswith("int4"):
        return FakeInt4Linear(blocks.of(name, module.weight), module.bias, bits)
    return FakeInt8Linear(module.weight, module.bias, bits)

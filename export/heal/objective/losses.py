"""What the steps of healing minimise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kvfold.export.heal.objective.head_kl import head_kl
from kvfold.export.heal.student.student import TrainedModel
from kvfold.export.heal.student.trainable import changed_layers
from kvfold.export.heal.training.training_text import TrainingText
from kvfold.export.model.decoder import Backbone, Block
from kvfold.export.quantize.layer_calibration import HEAD


def scored_positions(count: int, length: int, share: float, seed: int) -> Tensor:
    """The positions of each sequence that are compared, sorted, int64 [count, about share * length]."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, length, generator=generator)
    return draws.topk(max(1, round(share * length)), dim=1).indices.sort(dim=1).values


class LayerwiseLoss:
    """Step A: each attention block's output against the original's, on the original's inputs.

    Teacher-forced inputs let one pass of the original serve all layers at once, keep every target the
    answer to the very input the student sees, and stop gradients at the block. What a layer must
    do about the errors of those below it, step B teaches.
    """

    def __init__(self, teacher: TrainedModel, student: TrainedModel, text: TrainingText) -> None:
        self.teacher, self.student, self.text = teacher, student, text
        self.layers = changed_layers(student.config, student.plan)

    def __call__(self, rows: Tensor) -> Tensor:
        """Mean over the changed layers of E|student - teacher|^2 / E|teacher|^2.

        Where the original's attention adds nothing it is E|student|^2.
        """
        with torch.no_grad():
            tokens = self.text.take(rows).to(self.teacher.device)
            inputs, targets = self.teacher.call(lambda backbone: self._watch(backbone, tokens))
        outputs = self.student.call(lambda backbone: self._attend(backbone, inputs))
        errors = []
        for layer, output in zip(self.layers, outputs, strict=True):
            target = targets[layer].float()
            power = target.square().mean()
            error = functional.mse_loss(output.float(), target)
            errors.append(error / torch.where(power == 0, 1.0, power))
        return torch.stack(errors).mean()

    def _watch(self, backbone: Backbone, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What each block of the original reads, [B, L, d], and what its attention adds."""
        hidden, mixer = backbone.embed_tokens(tokens), self.teacher.mixer()
        inputs, targets = [], []
        for block in backbone.layers[: self.layers[-1] + 1]:
            assert isinstance(block, Block)
            inputs.append(hidden)
            targets.append(block.self_attn(block.attention_input(hidden), mixer))
            hidden = block.add_mlp(block.add_attention(hidden, targets[-1]))
        return inputs, targets

    def _attend(self, backbone: Backbone, inputs: list[Tensor]) -> list[Tensor]:
        mixer = self.student.mixer()
        outputs = []
        for layer in self.layers:
            block = backbone.layers[layer]
            assert isinstance(block, Block)
            outputs.append(block.self_attn(block.attention_input(inputs[layer]), mixer))
        return outputs


class EndToEndLoss:
    """Steps B and C: KL(original || student) at the scored positions; the original answers meanwhile.

    It answers anew whenever a text is read again: text that is read once teaches more, and then nothing is
    gained by keeping 2 * hidden_size bytes a position.

    Attributes:
        positions: the scored ones of each sequence, parted as the text is.
        head: lm_head's weight in the dtype to multiply in.
        student_head: the same as the student has it, rounded where it is deployed in int8.
    """

    def __init__(
        self,
        teacher: TrainedModel,
        student: TrainedModel,
        head: Tensor,
        text: TrainingText,
        scored: float,
        seed: int,
    ) -> None:
        """`head` is lm_head's weight [vocab, hidden_size], float32; `scored` the share that is compared."""
        self.teacher, self.student, self.text = teacher, student, text
        self.positions = tuple(
            scored_positions(len(part), part.shape[1], scored, seed) for part in text.parts
        )
        head = head.to(student.device)
        self.head = self.student_head = head.to(student.dtype)
        with student.device:
            self.rounding = student.int8.rounding(HEAD, head.shape[1]) if student.int8 else None
        if self.rounding is not None:
            integers, scale = self.rounding.weight(head)
            self.student_head = (integers * scale[:, None] / self.rounding.smoothing).to(student.dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        """Mean KL in nat a position, over sequences of one length."""
        tokens = self.text.take(rows)
        positions = self.text.take(rows, self.positions).to(self.head.device)
        with torch.no_grad():
            states = pick(self.teacher.hidden(tokens), positions).flatten(0, 1)
        hidden = pick(self.student.hidden(tokens), positions).flatten(0, 1)
        if self.rounding is not None:
            hidden = self.rounding.tokens(hidden)
        return head_kl(hidden, states, self.head, self.student_head, self.student.config.final_softcap)


def pick(hidden: Tensor, positions: Tensor) -> Tensor:
    """hidden [B, n, d] at positions [B, n] of hidden [B, L, d]."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))

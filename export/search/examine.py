"""Examine a changed model: KL to the unfolded one on text, and the likelihood of answers it must retrieve.

What comes before a change is computed once: a `Walk` stands before a layer and finishes from there, as
often as asked, with other blocks or under another plan. Layers are read whenever they are needed, so that
memory holds one of them, the head, and what the texts are at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kvfold.export.heal.objective.head_kl import head_kl
from kvfold.export.heal.student.training_attention import TrainingAttention
from kvfold.export.layerwise.layerwise_model import LayerwiseModel
from kvfold.export.model.decoder import cap_logits
from kvfold.export.model.matmul_dtype import matmul_dtype
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.residual_stream import sequences_per_batch
from kvfold.export.search.costs import Cost
from kvfold.export.search.question import Question
from kvfold.plugins.contract.fold_plan import FoldPlan

KL_STRIDE = 4  # KL is measured at one position of so many


class Walk:
    """Hidden states of several inputs, standing before `layer` of a model under a plan without sharing."""

    def __init__(self, model: LayerwiseModel, plan: FoldPlan, inputs: Sequence[Tensor]) -> None:
        """Embed inputs, int64 [B, L] each."""
        self.model = model
        self.plan = plan
        self.layer = 0
        width = model.config.hidden_size
        self.hidden = [torch.empty(*ids.shape, width, dtype=model.dtype) for ids in inputs]
        model.embed(inputs, self.hidden)

    def advance(self) -> None:
        """Move past a layer."""
        mixer = TrainingAttention(self.model.config, self.plan)
        self.model.run(self.hidden, range(self.layer, self.layer + 1), mixer)
        self.layer += 1

    def finish(
        self,
        plan: FoldPlan,
        blocks: Sequence[nn.Module] = (),
        scales: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Final hidden states [B, L, hidden_size] of each input; `blocks` stand in for the next layers."""
        hidden = [rows.clone() for rows in self.hidden]
        rest = range(self.layer, len(plan.layers))
        mixer = TrainingAttention(self.model.config, plan, scales)
        self.model.run(hidden, rest, mixer, given=dict(zip(rest, blocks, strict=False)))
        yield from map(self.model.final_norm(), hidden)


class Examination:
    """The text, the questions, and what the unfolded model makes of them.

    Attributes:
        config: of the model.
        weights: the unfolded model's, Hugging Face names, float32.
        identity: the plan that folds nothing.
        original: the unfolded model in the dtype that this machine multiplies fastest in.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        text: Tensor,
        questions: Sequence[Question],
    ) -> None:
        """The original reads the text, int64 [N, L]."""
        self.config = config
        self.weights = weights
        self.identity = FoldPlan.of(config.attention_shape)
        self.original = self.model(self.identity, weights)
        self._head = weights[self.original.head_name].to(self.original.dtype)
        self._text = torch.split(text, sequences_per_batch(text.shape[1]))
        self._questions = questions
        self._reference = [
            self._scored(final).clone() for final in self.read_text(self.original).finish(self.identity)
        ]

    def model(self, plan: FoldPlan, weights: Mapping[str, Tensor]) -> LayerwiseModel:
        """One that is read in the original's dtype."""
        return LayerwiseModel(self.config, plan, weights, matmul_dtype())

    def read_text(self, model: LayerwiseModel) -> Walk:
        """The text before layer 0."""
        return Walk(model, self.identity, self._text)

    def read_questions(self, model: LayerwiseModel, plan: FoldPlan) -> Walk:
        """The questions before layer 0, their last tokens left out: nothing follows them."""
        inputs = [torch.from_numpy(question.token_ids)[None, :-1] for question in self._questions]
        return Walk(model, plan, inputs)

    def kl(self, finals: Iterator[Tensor]) -> float:
        """Mean KL(original || other) in nat a position, from the other's final states of the text."""
        softcap, total = self.config.final_softcap, 0.0
        for reference, final in zip(self._reference, finals, strict=True):
            kl = head_kl(self._scored(final), reference, self._head, softcap=softcap)
            total += len(reference) * float(kl)
        return total / sum(map(len, self._reference))

    def nll(self, finals: Iterator[Tensor]) -> float:
        """Mean -log p of an answer in nat, from final states of the questions."""
        total = 0.0
        for question, final in zip(self._questions, finals, strict=True):
            answer = torch.from_numpy(question.token_ids[question.answer :])
            logits = functional.linear(final[0, question.answer - 1 :], self._head)
            log_p = cap_logits(logits, self.config.final_softcap).float().log_softmax(-1)
            total -= float(log_p.gather(1, answer[:, None]).sum())
        return total / len(self._questions)

    def unfolded(self) -> Cost:
        """The original's own."""
        questions = self.read_questions(self.original, self.identity)
        return Cost(kl=0.0, nll=self.nll(questions.finish(self.identity)))

    @staticmethod
    def _scored(final: Tensor) -> Tensor:
        return final[:, ::KL_STRIDE].flatten(0, 1)

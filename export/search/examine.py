"""Examine a changed model: KL to the unfolded one on text, and the likelihood of answers it must retrieve.

What comes before a change is computed once: a `Walk` stands before a layer and finishes from there, as
often as asked, with other blocks or under another plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from kvfold.export.heal.objective.head_kl import head_kl
from kvfold.export.heal.student.training_attention import TrainingAttention
from kvfold.export.model.decoder import Block, Decoder
from kvfold.export.model.matmul_dtype import matmul_dtype
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.residual_stream import sequences_per_batch
from kvfold.export.search.costs import Cost
from kvfold.export.search.question import Question
from kvfold.plugins.contract.fold_plan import FoldPlan

KL_STRIDE = 4  # KL is measured at one position of so many


class Walk:
    """Hidden states of several inputs, standing before `layer` of a decoder under a plan without sharing."""

    def __init__(self, decoder: Decoder, plan: FoldPlan, inputs: Sequence[Tensor]) -> None:
        """Embed inputs, int64 [B, L] each."""
        self.decoder = decoder
        self.plan = plan
        self.layer = 0
        self.hidden = [decoder.model.embed_tokens(ids) for ids in inputs]

    def advance(self) -> None:
        """Move past a layer."""
        block = self.decoder.model.layers[self.layer]
        self.hidden = list(self._run([block], self.plan))
        self.layer += 1

    def finish(
        self,
        plan: FoldPlan,
        blocks: Sequence[Block] = (),
        scales: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Final hidden states [B, L, hidden_size] of each input; `blocks` stand in for the next layers."""
        rest = list(self.decoder.model.layers)[self.layer + len(blocks) :]
        for hidden in self._run([*blocks, *rest], plan, scales):
            yield self.decoder.model.norm(hidden)

    def _run(
        self, blocks: Sequence[torch.nn.Module], plan: FoldPlan, scales: Mapping[str, Tensor] | None = None
    ) -> Iterator[Tensor]:
        mixer = TrainingAttention(self.decoder.config, plan, scales)
        for hidden in self.hidden:
            mixer.keys_values = {}
            for block in blocks:
                hidden = block(hidden, mixer)
            yield hidden


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
        self.original = Decoder.from_weights(config, self.identity, weights).to(matmul_dtype())
        self._text = torch.split(text, sequences_per_batch(text.shape[1]))
        self._questions = questions
        self._reference = [
            self._scored(final).clone() for final in self.read_text(self.original).finish(self.identity)
        ]

    def read_text(self, decoder: Decoder) -> Walk:
        """The text before layer 0."""
        return Walk(decoder, self.identity, self._text)

    def read_questions(self, decoder: Decoder, plan: FoldPlan) -> Walk:
        """The questions before layer 0, their last tokens left out: nothing follows them."""
        inputs = [torch.from_numpy(question.token_ids)[None, :-1] for question in self._questions]
        return Walk(decoder, plan, inputs)

    def kl(self, finals: Iterator[Tensor]) -> float:
        """Mean KL(original || other) in nat a position, from the other's final states of the text."""
        head, softcap, total = self.original.lm_head.weight, self.original.config.final_softcap, 0.0
        for reference, final in zip(self._reference, finals, strict=True):
            total += len(reference) * float(head_kl(self._scored(final), reference, head, softcap=softcap))
        return total / sum(map(len, self._reference))

    def nll(self, finals: Iterator[Tensor]) -> float:
        """Mean -log p of an answer in nat, from final states of the questions."""
        total = 0.0
        for question, final in zip(self._questions, finals, strict=True):
            answer = torch.from_numpy(question.token_ids[question.answer :])
            log_p = self.original.logits(final[0, question.answer - 1 :]).float().log_softmax(-1)
            total -= float(log_p.gather(1, answer[:, None]).sum())
        return total / len(self._questions)

    def unfolded(self) -> Cost:
        """The original's own."""
        questions = self.read_questions(self.original, self.identity)
        return Cost(kl=0.0, nll=self.nll(questions.finish(self.identity)))

    @staticmethod
    def _scored(final: Tensor) -> Tensor:
        return final[:, ::KL_STRIDE].flatten(0, 1)

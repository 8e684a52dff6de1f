"""The subjects of a bundle: original and folded model, a layer in memory at a time, and the engine."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kvfold.pipeline.quality.subject_names import BFLOAT16, ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.quality.subjects import EngineSubject, Subject, Tick, blocks
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.memory.budget import pages_of_sequence

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kvfold.export.layerwise.layerwise_model import LayerwiseModel


class Heads:
    """Weights of the subjects' heads, float32, each read and held once: folding changes none."""

    def __init__(self) -> None:
        self._held: dict[tuple[Hashable, str], tuple[Mapping[str, Tensor], Tensor]] = {}

    def of(self, model: LayerwiseModel) -> Tensor:
        """A model's head; read where no model that has the same one asked for it before."""
        from kvfold.export.weights.changed_weights import identity_of, source_of

        name = model.head_name
        source = source_of(model.weights, name)
        key = identity_of(source), name
        if key not in self._held:
            self._held[key] = source, model.weights[name]  # as long as the source lives, no other has its id
        return self._held[key][1]

    def embedding(self, model: LayerwiseModel) -> Tensor | None:
        """A model's embedding, where a head that is held is the same table."""
        from kvfold.export.layerwise.layerwise_model import EMBEDDING
        from kvfold.export.weights.changed_weights import identity_of, source_of

        held = self._held.get((identity_of(source_of(model.weights, EMBEDDING)), EMBEDDING))
        return held and held[1]


class LayerwiseSubject(Subject):
    """A model in PyTorch that reads texts layer by layer; the weights stay where they are.

    Its logits are those of a `TorchSubject` over the whole model.

    Args:
        name: of the subject.
        model: to read with.
        heads: of the subjects beside it.
    """

    left = 0.2  # by SmolLM2's products below and in the head

    def __init__(self, name: str, model: LayerwiseModel, heads: Heads) -> None:
        super().__init__(name)
        self.heads = heads
        self._model = model
        self._hidden: dict[bytes, Tensor] = {}

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        """All rows at once."""
        return next(self._blocks(token_ids, [slice(0, len(token_ids))]))

    def stream_logits(self, token_ids: np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """The head on a block at a time; a text that was not read ahead is read now."""
        return self._blocks(token_ids, blocks(first, len(token_ids)))

    def read_ahead(self, texts: Sequence[np.ndarray], tick: Tick) -> None:
        """Read texts together, and forget those of the last time."""
        import torch

        start = time.perf_counter()
        different = {text.tobytes(): torch.from_numpy(text) for text in texts}
        share = (1 - self.left) * sum(map(len, texts)) / max(1, sum(map(len, different.values())))
        self._hidden = {}  # what it held goes first
        if different:
            hidden = self._model.final_hidden(
                list(different.values()),
                lambda tokens: tick(share * tokens),
                self.heads.embedding(self._model),
            )
            self._hidden = dict(zip(different, hidden, strict=True))
        self.seconds += time.perf_counter() - start

    def _blocks(self, token_ids: np.ndarray, wanted: Iterable[slice]) -> Iterator[np.ndarray]:
        import torch

        key = token_ids.tobytes()
        if key not in self._hidden:
            self.read_ahead([token_ids], lambda tokens: None)
        head, hidden = self.heads.of(self._model), self._hidden[key]
        for rows in wanted:
            with torch.inference_mode():
                logits: np.ndarray = self._model.logits(hidden[rows], head).numpy()
            yield logits
            del logits  # before the next ones are there


def load_subjects(
    workspace: Workspace, longest: int, prefill_chunk: int
) -> tuple[LayerwiseSubject, LayerwiseSubject, EngineSubject]:
    """Original, folded model and the engine of the recipe's target, for texts of up to `longest` tokens.

    Raises:
        KvfoldError: the bundle's weights or its engine cannot be loaded.
    """
    from kvfold.export.layerwise.layerwise_model import LayerwiseModel
    from kvfold.runtime.engine.engine_files import EngineFiles
    from kvfold.runtime.engine.load_engine import load_engine
    from kvfold.runtime.engine.slabs import bytes_of_slabs

    plan, original = workspace.plan, load_original(workspace)
    pages = pages_of_sequence(plan, longest, prefill_chunk)
    files = EngineFiles.read(workspace.root / "engine" / workspace.recipe.target, plan)
    budget = bytes_of_slabs(plan, pages, files.slab_pages)
    engine = load_engine(files, budget, max_num_batched_tokens=prefill_chunk, max_num_seqs=1)
    return (
        original,
        LayerwiseSubject(FOLDED, LayerwiseModel(workspace.config, plan, workspace.healed), original.heads),
        EngineSubject(ENGINE, engine, prefill_chunk),
    )


def load_original(workspace: Workspace) -> LayerwiseSubject:
    """The unfolded model, whose heads those beside it share."""
    return LayerwiseSubject(ORIGINAL, _original(workspace), Heads())


def load_bfloat16(workspace: Workspace, heads: Heads) -> LayerwiseSubject:
    """The original in bfloat16: what rounding alone costs."""
    import torch

    return LayerwiseSubject(BFLOAT16, _original(workspace, torch.bfloat16), heads)


def _original(workspace: Workspace, dtype: torch.dtype | None = None) -> LayerwiseModel:
    from kvfold.export.layerwise.layerwise_model import LayerwiseModel

    return LayerwiseModel(workspace.config, _identity(workspace), workspace.original, dtype)


def _identity(workspace: Workspace) -> FoldPlan:
    return FoldPlan.of(workspace.config.attention_shape)

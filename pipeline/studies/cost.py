"""What a folded model costs, in float: beside the original on one text, measured as `kvfold eval` does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.quality.intervals import Estimate
from kvfold.pipeline.quality.likelihood_results import Divergences, Perplexity
from kvfold.pipeline.quality.subject_names import FOLDED
from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import EVALUATION_TOKENS, Workspace
from kvfold.plugins.contract.progress import Progress, part
from kvfold.plugins.contract.record import Record
from kvfold.runtime.bundle import open_bundle

if TYPE_CHECKING:
    import numpy as np

    from kvfold.export.layerwise.layerwise_model import LayerwiseModel
    from kvfold.pipeline.quality.load_subjects import LayerwiseSubject


class FoldCost(Record):
    """A folded model against the original, both in float; what int8 adds is not in it.

    Attributes:
        perplexity: of original and folded, in windows of the text's `sequence_length`.
        divergences: of the folded model, over the text's first `kl_tokens`.
    """

    perplexity: Perplexity
    divergences: Divergences

    @property
    def folded(self) -> Estimate:
        """The folded model's perplexity."""
        return self.perplexity.subjects[FOLDED]

    @property
    def ratio(self) -> Estimate:
        """Its perplexity over the original's, of the same windows."""
        return self.perplexity.ratios[FOLDED]

    @property
    def kl(self) -> Estimate:
        """Mean KL(original || folded) in nat per token."""
        return self.divergences.candidates[0].kl_mean


class Yardstick:
    """The original and the text that folded models of one checkpoint are held against; loaded when needed.

    Args:
        workspace: of a recipe whose section `evaluate` names the text, its stage `evaltext` up to date.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.section = workspace.recipe.evaluate

    @property
    def fingerprint(self) -> object:
        """Everything of it that decides a measurement, by content."""
        return [file_hashes(self._workspace.root, "checkpoint", "evaltext"), self.section.kl_tokens]

    @cached_property
    def _windows(self) -> np.ndarray:
        """Tokens int64 [windows, sequence_length]."""
        windows: np.ndarray = self._workspace.tensors(EVALUATION_TOKENS)["tokens"].numpy()
        return windows

    @cached_property
    def _original(self) -> LayerwiseSubject:
        from kvfold.pipeline.quality.load_subjects import load_original

        return load_original(self._workspace)

    def measure(self, model: LayerwiseModel, progress: Callable[[float], None]) -> FoldCost:
        """Hold a folded model against the original.

        Raises:
            ValidationError: its logits are NaN or infinite.
        """
        from kvfold.pipeline.quality.likelihood import measure_divergences, measure_perplexity
        from kvfold.pipeline.quality.load_subjects import LayerwiseSubject
        from kvfold.pipeline.quality.meter import Meter

        folded = LayerwiseSubject(FOLDED, model, self._original.heads)
        length = self._windows.shape[1]
        compared = self._windows[: ceil(self.section.kl_tokens / length)]
        tick = Meter(2 * self._windows.size, progress)
        divergences, losses = measure_divergences(compared, self._original, (folded,), tick)
        perplexity = measure_perplexity(self._windows, length, (self._original, folded), tick, losses)
        return FoldCost(perplexity=perplexity, divergences=divergences)


def cost_stage(
    name: str,
    yardstick: Yardstick,
    load: Callable[[Progress], AbstractContextManager[LayerwiseModel]],
    inputs: object,
    modules: tuple[str, ...] = (),
    loading: float = 0,
) -> Stage:
    """A stage of its own folder that writes a folded model's FoldCost to `<name>.json`.

    Args:
        name: of the stage.
        yardstick: what the model is held against.
        load: makes the model, which is there as long as the context; told how far it is.
        inputs: everything that decides the model, by content.
        modules: what makes it, where it is not read from a bundle.
        loading: share of the time that making it takes, for the progress display.
    """

    def run(workspace: Workspace, job: Job) -> None:
        path = job.output / file
        path.parent.mkdir(parents=True)
        measuring = part(job.progress, loading, 1 - loading, "measuring perplexity and KL")
        with load(part(job.progress, 0, loading)) as model:
            path.write_text(yardstick.measure(model, measuring).model_dump_json(indent=1) + "\n")

    file = f"{name}.json"
    return Stage(
        name=name,
        doing="measuring perplexity and KL",
        needs=(),
        settings=lambda recipe: [yardstick.fingerprint, inputs],
        files=(file,),
        run=run,
        modules=(__name__, *modules),
    )


def read_cost(folder: Path, name: str) -> FoldCost:
    """What the stage `name` wrote into its folder."""
    return FoldCost.model_validate_json((folder / f"{name}.json").read_bytes())


def file_hashes(root: Path, *stages: str) -> dict[str, str]:
    """sha256 of every file that stages of a bundle wrote, by path."""
    recorded = open_bundle(root).manifest.stages
    return {name: file.sha256 for stage in stages for name, file in recorded[stage].files.items()}

"""Measure a ladder: fold what is not folded yet, hold every rung against the original, write it all down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich import get_console

from kvfold.pipeline.bring_up_to_date import bring_up_to_date
from kvfold.pipeline.show.markdown import write_table
from kvfold.pipeline.studies.cost import Yardstick, cost_stage, file_hashes, read_cost
from kvfold.pipeline.studies.frontier.frontier_picture import draw_frontier
from kvfold.pipeline.studies.frontier.frontier_tables import whole_frontier_table
from kvfold.pipeline.studies.frontier.ladder import load_ladder
from kvfold.pipeline.studies.frontier.rungs import Frontier, Rung
from kvfold.pipeline.studies.outlook import Task, bundle_tasks, config_of, say_outlook, seconds_to_read
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage import Stage
from kvfold.pipeline.workspace.stage_display import stage_display
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.pipeline.workspace.write_bundle import name_disk_errors
from kvfold.plugins.contract.kv_savings import kv_bytes
from kvfold.runtime.bundle import read_manifest

if TYPE_CHECKING:
    from kvfold.export.layerwise.layerwise_model import LayerwiseModel
    from kvfold.plugins.contract.progress import Progress


def measure_frontier(names: Sequence[str], folder: Path) -> Frontier:
    """Measure recipes on the first one's text and write frontier.json, .md and .svg into `folder`.

    Every rung is folded (and healed) in its own bundle; its cost is kept in `folder`, in
    `rungs/<recipe>.json`, until its weights, the text or the code changes.

    Raises:
        RecipeError: a recipe is not valid, two have one name, or they are for different models.
        KvfoldError: whatever a stage raises; what finished before it stays.
    """
    rungs = load_ladder(names)
    say_outlook(get_console(), frontier_tasks(rungs, folder))
    bring_up_to_date(names[0], rungs[0].root, "evaltext")
    for name, rung in zip(names, rungs, strict=True):
        bring_up_to_date(name, rung.root, "heal")
    yardstick = Yardstick(rungs[0])
    console = get_console()
    console.print(f"[bold]Frontier[/] -> {folder}")
    with stage_display(console) as display:
        stages = tuple(_rung_stage(rung, yardstick) for rung in rungs)
        run_stages(rungs[0].recipe, folder, stages, display)
    found = [_read_rung(rung, folder) for rung in rungs]
    frontier = Frontier(
        text=yardstick.section.description,
        rungs=tuple(sorted(found, key=lambda rung: rung.size, reverse=True)),
    )
    with name_disk_errors(folder):
        (folder / "frontier.json").write_text(frontier.model_dump_json(indent=1) + "\n")
        (folder / "frontier.md").write_text(write_table(whole_frontier_table(frontier)), encoding="utf-8")
        (folder / "frontier.svg").write_text(draw_frontier(frontier), encoding="utf-8")
    return frontier


def frontier_tasks(rungs: Sequence[Workspace], folder: Path) -> Iterator[Task]:
    """Fold and heal what is not folded yet, then hold it, and what was never measured, to the original."""
    recorded = read_manifest(folder)
    seconds = recorded.seconds if recorded else {}
    first, section = rungs[0], rungs[0].recipe.evaluate
    new_text = bundle_tasks(first.recipe, first.root, "evaltext")
    parts = {rung: ("evaltext", "heal") if rung is first else ("heal",) for rung in rungs}
    folds = {rung: bundle_tasks(rung.recipe, rung.root, *until) for rung, until in parts.items()}
    measured = [rung for rung in rungs if new_text or folds[rung] or _stage_name(rung) not in seconds]
    for found in folds.values():
        yield from found
    if measured:
        config = config_of(first.recipe, first.root)
        reading = seconds_to_read(config, 2 * section.tokens)
        yield Task(
            f"hold {len(measured)} of {len(rungs)} rungs to the original on {section.tokens:,} tokens",
            sum(seconds.get(_stage_name(rung), reading) for rung in measured),
        )


def _stage_name(rung: Workspace) -> str:
    return f"rungs/{rung.recipe.name}"


def _rung_stage(rung: Workspace, yardstick: Yardstick) -> Stage:
    """The plan and the weights count by content; so does whatever else folding and healing wrote."""

    def load(progress: Progress) -> nullcontext[LayerwiseModel]:
        from kvfold.export.layerwise.layerwise_model import LayerwiseModel

        return nullcontext(LayerwiseModel(rung.config, rung.plan, rung.healed))

    inputs = file_hashes(rung.root, "fold", "heal")
    return cost_stage(_stage_name(rung), yardstick, load, inputs)


def _read_rung(rung: Workspace, folder: Path) -> Rung:
    return Rung(
        recipe=rung.recipe.name,
        kv_bytes=kv_bytes(rung.plan, rung.config.attention_shape),
        cost=read_cost(folder, _stage_name(rung)),
    )

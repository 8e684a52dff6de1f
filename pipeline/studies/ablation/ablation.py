"""Fold a recipe's model under its plan once per method, and hold each against the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import get_console

from kvfold.pipeline.bring_up_to_date import bring_up_to_date
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.plan_section import plan_for
from kvfold.pipeline.show.markdown import write_table
from kvfold.pipeline.studies.ablation import fold_by_method
from kvfold.pipeline.studies.ablation.ablation_results import Ablation, Row
from kvfold.pipeline.studies.ablation.ablation_tables import whole_ablation_table
from kvfold.pipeline.studies.cost import Yardstick, cost_stage, file_hashes, read_cost
from kvfold.pipeline.studies.outlook import Task, bundle_tasks, config_of, say_outlook, seconds_to_read
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage import Stage
from kvfold.pipeline.workspace.stage_display import stage_display
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.pipeline.workspace.write_bundle import name_disk_errors
from kvfold.plugins.contract.errors import RecipeError
from kvfold.runtime.bundle import read_manifest

# In the bundle's folder, outside its manifest; what decides a measurement is in its stage's hash.
WORK = Path("work/ablation")
RESULTS, MARKDOWN = Path("report/ablation.json"), Path("report/ablation.md")
# A ridge so high that every regression returns its prior: the pretrained weights and the algebra alone.
NO_REGRESSION = 1e12
# Share of the time that a fold takes beside its measurement, for the progress display.
FOLDING = 0.6


def measure_ablation(name: str, root: Path) -> Ablation:
    """Measure every method, with and without least squares, and write the report into the bundle `root`.

    Raises:
        RecipeError: the recipe is not valid, or its plan merges nothing.
        KvfoldError: whatever a stage or a fold raises; what finished before it stays.
    """
    from kvfold.export.fold.baselines import METHODS

    workspace = Workspace(load_recipe(name), root)
    _require_merging(workspace)
    variants = [(method, regressed) for regressed in (True, False) for method in METHODS]
    say_outlook(get_console(), ablation_tasks(workspace, variants))
    bring_up_to_date(name, root, "calibration")
    recipe = bring_up_to_date(name, root, "evaltext")
    yardstick = Yardstick(workspace)
    console = get_console()
    console.print(f"[bold]Methods[/] -> {root / WORK}")
    stages = tuple(_method_stage(workspace, yardstick, *variant) for variant in variants)
    with stage_display(console) as display:
        run_stages(recipe, root / WORK, stages, display)
    ablation = Ablation(
        recipe=recipe.name,
        text=recipe.evaluate.description,
        rows=tuple(
            Row(method=method, regressed=regressed, cost=read_cost(root / WORK, stage.name))
            for stage, (method, regressed) in zip(stages, variants, strict=True)
        ),
    )
    with name_disk_errors(root):
        (root / RESULTS).parent.mkdir(exist_ok=True)
        (root / RESULTS).write_text(ablation.model_dump_json(indent=1) + "\n")
        (root / MARKDOWN).write_text(write_table(whole_ablation_table(ablation)), encoding="utf-8")
    return ablation


def ablation_tasks(workspace: Workspace, variants: Sequence[tuple[str, bool]]) -> Iterator[Task]:
    """Texts, then a fold and a measurement for each way that was not measured yet."""
    recipe, root = workspace.recipe, workspace.root
    recorded = read_manifest(root / WORK)
    seconds = recorded.seconds if recorded else {}
    texts = bundle_tasks(recipe, root, "calibration", "evaltext")
    yield from texts
    names = [_stage_name(*variant) for variant in variants]
    missing = [name for name in names if texts or name not in seconds]
    if missing:
        read, folded_on = recipe.evaluate.tokens, sum(text.tokens for text in recipe.calibration)
        known = [seconds[name] for name in missing if name in seconds]
        reading = seconds_to_read(config_of(recipe, root), 2 * read)
        yield Task(
            f"{len(missing)} of {len(names)} ways to merge heads: fold each on {folded_on:,} tokens, and "
            f"hold it against the original on {read:,}",
            sum(known) + reading * (len(missing) - len(known)),
            at_least=len(known) < len(missing),
        )


def _stage_name(method: str, regressed: bool) -> str:
    return f"methods/{method}" + ("" if regressed else "-alone")


def _require_merging(workspace: Workspace) -> None:
    from kvfold.export.fold.fold import is_folded

    config, recipe = read_checkpoint(workspace).config, workspace.recipe
    plan = plan_for(recipe.plan, config.attention_shape)
    if not any(is_folded(bank, config) for bank in plan.banks):
        raise RecipeError(
            f"recipe {recipe.name}: its plan keeps every KV head of every layer: there is nothing to merge; "
            "name a recipe with fewer heads or shared layers, such as mqa or character"
        )


def _method_stage(workspace: Workspace, yardstick: Yardstick, method: str, regressed: bool) -> Stage:
    recipe = workspace.recipe
    ridge = recipe.fold.ridge if regressed else NO_REGRESSION
    settings = [section.model_dump(mode="json") for section in (recipe.plan, recipe.fold)]
    return cost_stage(
        _stage_name(method, regressed),
        yardstick,
        lambda progress: fold_by_method.fold_by(workspace, method, ridge, progress),
        inputs=[file_hashes(workspace.root, "calibration"), settings, method, ridge],
        modules=(fold_by_method.__name__,),
        loading=FOLDING,
    )

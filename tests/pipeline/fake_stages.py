"""Stages that write small text files, so that the machinery can be killed thousands of times a minute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from kvfold.pipeline.recipe.recipe import ModelSection, Recipe
from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.plugins.contract.plan_presets import Preset
from kvfold.plugins.contract.progress import Progress, unheard


def fake_recipe(source: str = "one", seed: int = 0) -> Recipe:
    """A recipe whose settings the fake stages copy into their files."""
    recipe = Recipe(name="fake", model=ModelSection(source=source), plan=Preset(preset="identity"))
    calibration = (recipe.calibration[0].model_copy(update={"seed": seed}),)
    return recipe.model_copy(update={"calibration": calibration})


def fake_stages(ran: list[str]) -> tuple[Stage, ...]:
    """first -> second -> third; first also feeds a branch. `ran` records what was run."""

    def stage(name: str, needs: tuple[str, ...], settings: Callable[[Recipe], object]) -> Stage:
        def run(workspace: Workspace, job: Job) -> None:
            ran.append(name)
            read = "".join((workspace.root / need / "a.txt").read_text() for need in needs)
            (job.output / name).mkdir()
            (job.output / name / "a.txt").write_text(f"{name} {settings(workspace.recipe)}\n{read}")
            job.progress(0.5)
            (job.output / name / "b.txt").write_text(name * 1000)

        return Stage(
            name, f"running {name}", needs, settings, (f"{name}/",), run, ("kvfold.plugins.contract.version",)
        )

    return (
        stage("first", (), lambda recipe: recipe.model.source),
        stage("second", ("first",), lambda recipe: recipe.calibration[0].seed),
        stage("third", ("second",), lambda recipe: None),
        stage("branch", ("first",), lambda recipe: None),
    )


class QuietDisplay:
    """A Display that shows nothing."""

    def skipped(self, stage: Stage) -> None:
        """Nothing."""

    def running(
        self, stage: Stage, place: str, why: str, last_time: float | None
    ) -> AbstractContextManager[Progress]:
        """Nothing."""
        return nullcontext(unheard)


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a bundle but the manifest and the lock."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", ".lock")
    }

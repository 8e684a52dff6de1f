"""RECIPE as a bundle that runs here: a built one as it is, a recipe's after what is missing was made."""

from __future__ import annotations

from pathlib import Path

import click

from kvfold.pipeline.commands.options.recipe_arguments import bundle_path, is_bundle
from kvfold.pipeline.recipe.recipe_files import BUNDLES
from kvfold.plugins.contract.errors import RecipeError


def built_bundle(
    recipe: str, output: Path | None, target: str | None, architectures: tuple[int, ...]
) -> tuple[Path, str]:
    """The bundle's folder, and the target whose engine is to run.

    Raises:
        RecipeError: there is neither such a recipe nor such a bundle; the message names bundles.
        UsageError: an architecture was given for a bundle that is built.
        KvfoldError: whatever a stage raises.
    """
    from kvfold.runtime.llm.llm import DEFAULT_TARGET

    if is_bundle(recipe):
        if architectures:
            raise click.UsageError("--sm builds an engine, and a bundle's folder runs as it is; leave it out")
        return Path(recipe), target or DEFAULT_TARGET
    try:
        root = bundle_path(recipe, output)
    except RecipeError as error:
        from kvfold.runtime.bundle import MANIFEST

        built = ", ".join(sorted(str(manifest.parent) for manifest in BUNDLES.glob(f"*/{MANIFEST}")))
        raise RecipeError(
            f"{error}; or a bundle's folder ({built or f'there is none in {BUNDLES} yet'})"
        ) from error
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date

    return root, bring_up_to_date(recipe, root, "run", target, architectures).target

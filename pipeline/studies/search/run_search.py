"""Search a recipe's plan in front of a user: bars, tables, the recipe with its new plan."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.recipe_files import find_recipe
from kvfold.pipeline.show.draw_plan import draw_plan
from kvfold.pipeline.show.terminal import draw_table
from kvfold.pipeline.show.watch import open_watch
from kvfold.pipeline.studies.search.found import Found
from kvfold.pipeline.studies.search.goal import Goal
from kvfold.pipeline.studies.search.search import Search
from kvfold.pipeline.studies.search.search_tables import search_tables
from kvfold.pipeline.studies.search.write_recipe import write_recipe
from kvfold.plugins.contract.errors import RecipeError


def run_search(name: str, goal: Goal, output: Path, console: Console) -> None:
    """Search, print what was found, write it.

    Raises:
        RecipeError: the recipe cannot take a searched plan, or the output cannot be written.
        KvfoldError: whatever the search raises.
    """
    recipe = load_recipe(name)
    ledger = output.with_name(f"{output.name}.measured.json")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(output.with_name(f".{output.name}.lock"), timeout=0), open_watch(console) as watch:
            found = Search(recipe, goal, ledger, watch).run()
        console.print(*map(draw_table, search_tables(found)), sep="\n")
        console.print(draw_plan(found.plan, found.space.shape))
        write_recipe(find_recipe(name), recipe, found.plan, describe(found), output)
    except Timeout as error:
        raise RecipeError(
            f"another search writes {output}; wait for it, or choose another --output"
        ) from error
    except OSError as error:
        raise RecipeError(
            f"{error.filename or output} cannot be read or written ({error.strerror or error}); free disk "
            "space or choose another --output, then run the same command again: measurements are kept"
        ) from error


def describe(found: Found) -> str:
    """A comment for the recipe."""
    space = found.space
    held = ", ".join(
        f"{kv_bytes / length:.1f} bytes a token at {length}"
        for kv_bytes, length in zip(found.solution.kv_bytes, space.lengths, strict=True)
    )
    return f"by kvfold plan: {held}; KL {found.cost.kl:.3g} nat a token before healing"

"""Find recipes by path or shipped name, without importing what it takes to validate them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from kvfold.plugins.contract.errors import RecipeError

SHIPPED = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "compact"
BUNDLES = Path("bundles")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with kvfold."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    from kvfold.runtime.bundle import MANIFEST

    if (path / MANIFEST).is_file():
        raise RecipeError(
            f"{name} is a bundle, and this command takes the recipe that it was made from; "
            f"name that, with --output {name}"
        )
    folder = " (the folder of that name is no bundle: it has no manifest.json)" if path.is_dir() else ""
    raise RecipeError(
        f"there is no recipe {name!r}{folder}{_suggest(name)}: give the path of a YAML file, or one of the "
        f"shipped recipes {', '.join(shipped_recipes())}"
    )


def _suggest(name: str) -> str:
    """The recipe that was perhaps meant: a shipped one, or a file where the wrong one was looked for."""
    path = Path(name)
    beside = {file.stem: str(file) for file in path.parent.glob("*.y*ml")}
    known = {shipped: shipped for shipped in shipped_recipes()} | beside
    near = get_close_matches(path.stem, known, n=1)
    return f" (did you mean {known[near[0]]!r}?)" if near else ""

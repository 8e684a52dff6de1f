"""`kvfold inspect`: a plan before anything is exported, and the plan of a bundle."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from kvfold.pipeline.cli import cli


def test_recipe_and_bundle_are_drawn_alike(recipes: Path, small_bundle: Path) -> None:
    """A bundle tells what its linears run in, too."""
    from_recipe, from_bundle = (
        CliRunner().invoke(cli, ["inspect", str(path)]) for path in (recipes / "small.yaml", small_bundle)
    )
    assert from_recipe.exit_code == from_bundle.exit_code == 0, from_recipe.output
    added = from_bundle.output.removeprefix(from_recipe.output)
    assert re.fullmatch(r"linears: \d+ int8(, \d+ \w+)*\n", added)
    assert "layer 0" in from_bundle.output
    assert "8,192 tokens" in from_bundle.output
    assert "4 layers keep 3 KV banks" in from_bundle.output

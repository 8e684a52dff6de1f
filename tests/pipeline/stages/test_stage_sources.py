"""Every module of ours that a stage loads while it runs is among its derived sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage import Stage
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe

SECTIONS = """
heal: {layerwise_tokens: 0, tokens: 256, batch_tokens: 256, rank: 8,
       text: [{source: text.txt, tokens: 192, sequence_length: 64}, {tokens: 64, sequence_length: 64}]}
evaluate:
  {source: text.txt, tokens: 256, sequence_length: 64, kl_tokens: 64,
   retrieval: {lengths: [250], depths: [0.2], trials: 1, keys: 2}}
"""
MINE = [stage for stage in STAGES if stage.target in (None, "cpu")]
# In a process that has loaded nothing of ours: the stage's module alone, and what reads its recipe.
RUN = """
import sys
from importlib import import_module
from pathlib import Path
module, recipe, root, output = sys.argv[1:]
stages = import_module(module)
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.workspace.stage import Job
from kvfold.pipeline.workspace.workspace import Workspace
stage = stages.STAGE if hasattr(stages, "STAGE") else stages.stage("cpu")
job = Job(Path(output), lambda fraction, note="": None, "key")
stage.run(Workspace(load_recipe(recipe), Path(root)), job)
from kvfold.pipeline.workspace.sources import ROOT, source_files
known = source_files((*stage.modules, "kvfold.pipeline.recipe.load_recipe"))
loaded = {Path(m.__file__) for name, m in sys.modules.items() if name.startswith("kvfold") and m.__file__}
assert not loaded - known, sorted(path.relative_to(ROOT).as_posix() for path in loaded - known)
assert Path(stages.__file__) in loaded
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healed bundle beside its recipe, made whole."""
    folder = tmp_path_factory.mktemp("sources")
    write_tiny_recipe(folder)
    (folder / "healed.yaml").write_text(RECIPE + SECTIONS)
    run_stages(load_recipe(str(folder / "healed.yaml")), folder / "bundle", STAGES, QuietDisplay())
    return folder / "bundle"


@pytest.mark.parametrize("stage", MINE, ids=lambda stage: stage.name)
def test_what_a_stage_loads_is_among_its_sources(stage: Stage, bundle: Path, tmp_path: Path) -> None:
    recipe = str(bundle.parent / "healed.yaml")
    command = [sys.executable, "-c", RUN, *stage.modules, recipe, str(bundle), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert any(tmp_path.iterdir())

"""One import name: kvfold works where a user has folders of his own called as its parts are.

From an editable install, which is what runs the tests, and from a wheel, made and installed here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import write_tiny_recipe
from tests.root import ROOT

THEIRS = ("plugins", "pipeline", "runtime", "export", "tests")
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
# lm-evaluation-harness is no dependency of the tests: its base class, as far as a model needs it.
LM_EVAL = "class LM:\n    pass\n"
USE = """
import sys
import kvfold
from kvfold import LLM, SamplingParams, Session
params = SamplingParams(max_tokens=4, ignore_eos=True)
print(LLM.load("bundle").generate("a cab", params)[0].usage.completion_tokens)
import plugins, pipeline, runtime, export, tests  # the user's own
assert {module.MINE for module in (plugins, pipeline, runtime, export, tests)} == {"mine"}
assert not [name for name in sys.modules if name.startswith(("runtime.", "plugins.", "pipeline.", "export."))]
print(kvfold.__file__)
"""
DOOR = """
from kvfold.pipeline.studies.lm_eval import load_lm_eval_model
from lm_eval.api.model import LM
assert isinstance(load_lm_eval_model("bundle"), LM)
"""


@dataclass(frozen=True)
class Install:
    """One way to have kvfold: what is run with it, and where its modules are."""

    environment: dict[str, str]
    command: Path
    modules: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: packages that are called as our parts are, and a bundle."""
    folder = tmp_path_factory.mktemp("user")
    recipe = write_tiny_recipe(folder)
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    run_stages(load_recipe(str(recipe)), folder / "bundle", STAGES, QuietDisplay(), "build-cpu")
    for name in THEIRS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text('MINE = "mine"\n')
    (folder / "lm_eval" / "api").mkdir(parents=True)
    (folder / "lm_eval" / "api" / "model.py").write_text(LM_EVAL)
    return folder


@pytest.fixture(params=["editable", "wheel"])
def install(request: pytest.FixtureRequest) -> Iterator[Install]:
    """Either way; what a user sets for Python's path is left out."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if request.param == "editable":
        yield Install(environment, Path(sys.executable).with_name("kvfold"), ROOT / "src")
    else:
        site: Path = request.getfixturevalue("wheel_site")
        yield Install(environment | {"PYTHONPATH": str(site)}, site / "bin" / "kvfold", site)


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None, said: str = "") -> str:
    """What a command printed; it must succeed."""
    result = subprocess.run(
        command, cwd=folder, env=environment, input=said, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_importing_and_generating(install: Install, folder: Path) -> None:
    tokens, found = run([sys.executable, "-c", USE], folder, install.environment).split()
    assert int(tokens) == 4
    assert Path(found) == install.modules / "kvfold" / "__init__.py"


def test_the_command(install: Install, folder: Path) -> None:
    command = [str(install.command), "run", "bundle", "--max-tokens", "4"]
    assert "tokens" in run(command, folder, install.environment, said="a cab\n")


def test_the_lm_eval_door(install: Install, folder: Path) -> None:
    run([sys.executable, "-c", DOOR], folder, install.environment)


def test_a_wheel_installs_one_name(wheel_site: Path) -> None:
    (information,) = (path.name for path in wheel_site.glob("kvfold-*.dist-info"))
    assert {path.name for path in wheel_site.iterdir()} == {"kvfold", information, "bin"}
    assert {path.name for path in (wheel_site / "bin").iterdir()} == {"kvfold"}
    for name in ("cpu", "cuda"):
        assert (wheel_site / "kvfold" / "plugins" / name / f"libkvfold_{name}.so").is_file()
    assert not list(wheel_site.rglob("test_*.py"))


def test_an_editable_install_adds_one_name() -> None:
    distribution = importlib.metadata.distribution("kvfold")
    names = {path.parts[0] for path in distribution.files or ()} - {".."}
    (pointer,) = (name for name in names if name.endswith(".pth"))
    assert all(name.endswith((".pth", ".dist-info")) for name in names)
    (path,) = Path(str(distribution.locate_file(pointer))).read_text().split()
    assert [each.name for each in Path(path).iterdir() if not each.name.endswith(".egg-info")] == ["kvfold"]

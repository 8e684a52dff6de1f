"""What `pip install kvfold` gives, with no extra: every command works, or says which one to install.

The environment is a folder with a wheel of kvfold, and links to its dependencies and to theirs; Python starts
without the packages of the environment that runs the tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kvfold.pipeline.cli import COMMANDS
from kvfold.pipeline.machine import extras
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.plugins.contract.errors import MissingExtraError
from tests.deploy.installed_packages import package_paths
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe
from tests.root import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAL = "heal: {tokens: 512, text: {source: text.txt, tokens: 512, sequence_length: 64}}\n"
INSTALL = "pip install 'kvfold[export]'"
# The first module that a command misses, and how it is had; torch by the extra of most.
MISSES = {
    "serve": ("httptools", "pip install 'kvfold[serve]'"),
    "tune": ("cuda.bindings", "pip install 'kvfold[cuda]'"),
}
# Commands as they are typed in a folder with `tiny.yaml`, nothing made of it, and the bundle `built`.
REFUSED = {
    "plan": "plan tiny.yaml --max-kl 0.1 -o found.yaml",
    "export": "export tiny.yaml",
    "write": "write tiny.yaml -o written.jsonl",
    "heal": "heal tiny.yaml",
    "build": "build tiny.yaml",
    "validate": "validate tiny.yaml",
    "eval": "eval tiny.yaml",
    "frontier": "frontier tiny.yaml",
    "ablate": "ablate tiny.yaml",
    "run": "run tiny.yaml",
    "demo": "demo tiny.yaml",
    "bench": "bench tiny.yaml --peers none --quick",
    "serve": "serve built",
    "tune": "tune",
}
WORKING = {
    "run": ("run built --max-tokens 4", "tokens"),
    "inspect": ("inspect built", "4 layers keep 3 KV banks"),
    "monitor": ("monitor --once", "Machine"),
    "completion": ("completion bash", "_KVFOLD_COMPLETE"),
    "doctor": ("doctor", INSTALL),
}
WORKING_TOO = [
    ("inspect tiny.yaml", "4 layers keep 3 KV banks"),
    ("run plain.yaml -o built --max-tokens 4", "unchanged"),
    ("--help", "Commands:"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, and a bundle that was built where everything is installed."""
    folder = tmp_path_factory.mktemp("user")
    write_tiny_recipe(folder, RECIPE + HEAL)
    (folder / "plain.yaml").write_text(RECIPE)
    (folder / "model" / "tokenizer_config.json").write_text(
        '{"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}'
    )
    run_stages(load_recipe(str(folder / "plain.yaml")), folder / "built", STAGES, QuietDisplay(), "build-cpu")
    return folder


@pytest.fixture(scope="module")
def bare_site(wheel_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of packages."""
    site = tmp_path_factory.mktemp("bare")
    entries = {path.name: path for path in wheel_site.iterdir()} | package_paths(PYPROJECT["dependencies"])
    for name, path in entries.items():
        (site / name).symlink_to(path)
    return site


def kvfold(line: str, folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    code = "from kvfold.pipeline.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *line.split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200"},
        input="a cab\n",
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_is_tried() -> None:
    assert REFUSED.keys() | WORKING.keys() | {"serve"} == COMMANDS.keys()


def test_the_environment_is_bare(bare_site: Path) -> None:
    names = ("torch", "onnx", "gguf", "pytest")
    code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    environment = os.environ | {"PYTHONPATH": str(bare_site)}
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(("command", "line"), REFUSED.items())
def test_it_says_what_to_install(command: str, line: str, folder: Path, bare_site: Path) -> None:
    run = kvfold(line, folder, bare_site)
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    module, install = MISSES.get(command, ("torch", INSTALL))
    assert run.stderr.startswith("MissingExtraError: "), run.stderr
    assert module in run.stderr and install in run.stderr
    assert not list(folder.glob("bundles/*/manifest.json")), "it began what it cannot end"


def test_a_server_says_what_to_install(folder: Path, bare_site: Path) -> None:
    run = kvfold("serve built", folder, bare_site)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stderr.startswith("MissingExtraError: uvicorn"), run.stderr
    assert "pip install 'kvfold[serve]'" in run.stderr


@pytest.mark.parametrize(("line", "said"), [*WORKING.values(), *WORKING_TOO])
def test_it_works(line: str, said: str, folder: Path, bare_site: Path) -> None:
    run = kvfold(line, folder, bare_site)
    assert run.returncode in ((0, 2) if line == "doctor" else (0,)), run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert said in run.stdout


def test_an_extra_of_pyproject_is_an_extra_of_the_installed_kvfold() -> None:
    declared = {
        extra: [name for line in lines if (name := re.split(r"[^\w.-]", line)[0]) != "onnxruntime-gpu"]
        for extra, lines in PYPROJECT["optional-dependencies"].items()
    }  # onnxruntime-gpu is imported as a package that every kvfold has
    assert extras.extra_modules().keys() == declared.keys() - {extras.DEVELOPERS}
    for extra, modules in extras.extra_modules().items():
        assert len(modules) == len(declared[extra])
        assert f"kvfold[{extra}]" in extras.install_command(extra)


@pytest.mark.parametrize("extra", [extras.EXPORT, "tensorrt-rtx"])
def test_modules_of_an_extra_are_found_under_their_names(extra: str) -> None:
    """These two are what the tests' own environment has."""
    extras.require_extra(extra)


@pytest.mark.parametrize(
    ("module", "extra"), [("lm_eval.api", "lm-eval"), ("tensorrt", "tensorrt"), ("torch", None), ("us", None)]
)
def test_a_failed_import_is_explained_by_its_extra(module: str, extra: str | None) -> None:
    """torch is installed here: a module of it that is not there is no missing extra."""
    explained = extras.explain_missing(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert (explained is None) == (extra is None)
    assert extra is None or f"pip install 'kvfold[{extra}]'" in str(explained)


def test_what_is_missing_is_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda module: module not in ("onnx", "gguf"))
    with pytest.raises(MissingExtraError, match=r"^onnx, gguf not installed"):
        extras.require_extra(extras.EXPORT)

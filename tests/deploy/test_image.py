"""The Dockerfile's image: built and run where there is no registry, on demand (`make check-image`)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from tests.deploy.container import TOOLS, Image, build_image
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import write_tiny_recipe

pytestmark = pytest.mark.timeout(3600)

KEY = "a key of the test"
ASK = f"""
import json, urllib.request
body = json.dumps({{"model": "kvfold", "prompt": "a cab", "max_tokens": 4, "ignore_eos": True}}).encode()
headers = {{"authorization": "Bearer {KEY}", "content-type": "application/json"}}
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body, headers)
print(json.load(urllib.request.urlopen(request))["usage"]["completion_tokens"])
"""


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    shown = "that the Dockerfile builds, and that its image serves, was not shown"
    if not request.config.getoption("--image"):
        pytest.skip(f"`make check-image` builds an image: {shown}")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root, {', '.join(TOOLS)}; not here: {missing}: {shown}")
    folder = tmp_path_factory.mktemp("image")
    yield build_image(folder)
    shutil.rmtree(folder)  # two gigabytes


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """A bundle and a file of keys, where CMD looks for them."""
    folder = tmp_path_factory.mktemp("mounted")
    run_stages(
        load_recipe(str(write_tiny_recipe(folder))), folder / "bundle", STAGES, QuietDisplay(), "build-cpu"
    )
    keys = {"keys": [{"name": "test", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}
    (folder / "keys.json").write_text(json.dumps(keys))
    return {folder / "bundle": "/bundle", folder / "keys.json": "/keys.json"}


def test_the_image_has_no_compiler(image: Image) -> None:
    programs = {path.name for path in image.root.glob("usr/bin/*")}
    assert "python3" in programs
    assert not programs & {"cc", "gcc", "g++", "clang", "make", "ld"}


def test_the_image_serves_from_a_root_that_cannot_be_written(image: Image, mounts: dict[Path, str]) -> None:
    server = image.start(image.config["Cmd"], mounts)
    try:
        process = wait_until_healthy(image, server)
        assert set(process.uids()) == {int(image.config["User"].partition(":")[0])}
        assert image.execute(process, ["touch", "/opt/kvfold/file"]).returncode != 0
        asked = image.execute(process, ["python", "-c", ASK])
        assert asked.stdout == "4\n", asked.stdout + asked.stderr
        process.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0, server.communicate()[0]
    finally:
        server.kill()


def wait_until_healthy(image: Image, server: subprocess.Popen[str]) -> psutil.Process:
    """The image's first process, when its health check holds."""
    check = image.config["Healthcheck"]["Test"][1:]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        for process in psutil.Process(server.pid).children():
            if image.execute(process, check).returncode == 0:
                return process
        time.sleep(1)
    server.kill()
    raise AssertionError(server.communicate()[0])

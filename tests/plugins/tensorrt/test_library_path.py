"""The folder of links that TensorRT's parser needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvfold.plugins.tensorrt.library_path import environment_for


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The libraries of an installed wheel."""
    package = tmp_path / "site" / "tensorrt_fake_libs"
    package.mkdir(parents=True)
    for name in ("__init__.py", "libtensorrt_fake.so.1", "libtensorrt_onnxparser_fake.so.1"):
        (package / name).write_text("")
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def test_libraries_get_the_names_that_the_parser_opens(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/cuda")
    folder = tmp_path / "lib"
    folder.mkdir()
    for _ in range(2):  # a folder may be used again
        environment = environment_for("tensorrt_fake", folder)
    assert environment["LD_LIBRARY_PATH"] == f"{folder}:/opt/cuda"
    assert os.environ["LD_LIBRARY_PATH"] == "/opt/cuda"
    assert sorted(link.name for link in folder.iterdir()) == [
        "libtensorrt_fake.so",
        "libtensorrt_onnxparser_fake.so",
    ]
    assert (folder / "libtensorrt_fake.so").resolve() == wheel / "libtensorrt_fake.so.1"


def test_a_library_that_the_system_installed_needs_no_links(tmp_path: Path) -> None:
    assert environment_for("tensorrt_of_the_system", tmp_path) == dict(os.environ)
    assert list(tmp_path.iterdir()) == []

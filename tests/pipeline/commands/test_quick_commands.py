"""Commands that only show something load little: modules are counted, which no busy machine changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from kvfold.pipeline.cli import COMMANDS
from tests.export.tiny_checkpoints import random_model
from tests.export.tiny_gguf import write_gguf

# Each takes a good part of a second, or seconds.
HEAVY = {
    *("torch", "gguf", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "huggingface_hub"),
    *("onnxruntime", "tokenizers", "triton", "tensorrt", "tensorrt_rtx", "jinja2", "scipy"),
}
# What help does without, too.
NOT_FOR_HELP = HEAVY | {"numpy", "pydantic", "yaml", "rich.console"}
RUN = """
import json, sys
from kvfold.pipeline.cli import main
loaded = []
for line in json.loads(sys.argv[1]):
    sys.argv = ["kvfold", *line]
    try:
        main()
    except SystemExit as end:
        assert end.code in (0, 2), end.code
    loaded.append(sorted(sys.modules))
print(json.dumps(loaded))
"""


def loaded_by(*lines: list[str], folder: Path | None = None) -> list[set[str]]:
    """Modules that are loaded after each command line, one after the other in one fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(lines)],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Error" not in result.stderr, result.stderr
    return [set(modules) for modules in json.loads(result.stdout.splitlines()[-1])]


def test_help_of_every_command_loads_little() -> None:
    lines = [["--help"], *([name, "--help"] for name in COMMANDS)]
    for line, loaded in zip(lines, loaded_by(*lines), strict=True):
        assert loaded & NOT_FOR_HELP == set(), line


@pytest.mark.parametrize("line", [["monitor", "--once"], ["completion", "bash"]])
def test_a_look_loads_nothing_heavy(line: list[str]) -> None:
    (loaded,) = loaded_by(line)
    assert loaded & HEAVY == set()


def test_doctor_loads_what_it_tries_and_no_more() -> None:
    (loaded,) = loaded_by(["doctor"])
    assert loaded & HEAVY <= {"onnxruntime", "tensorrt", "tensorrt_rtx"}


def test_inspecting_loads_nothing_heavy(recipes: Path, small_bundle: Path, tmp_path: Path) -> None:
    """A bundle's folder; recipes of a Hugging Face folder and of a GGUF file, nothing made of them yet."""
    write_gguf(tmp_path / "model.gguf", random_model("llama"), gguf.GGMLQuantizationType.F32)
    (tmp_path / "file.yaml").write_text("model: {source: model.gguf}\nplan: {preset: identity}\n")
    for argument in (small_bundle, recipes / "small.yaml", tmp_path / "file.yaml"):
        (loaded,) = loaded_by(["inspect", str(argument)], folder=tmp_path)
        assert loaded & HEAVY == set(), argument


def test_inspecting_a_recipe_reads_its_bundle_where_there_is_one(
    recipes: Path, small_bundle: Path, tmp_path: Path
) -> None:
    """Where the model is gone, or has to be fetched, the bundle still says what it looks like."""
    shutil.copytree(small_bundle, tmp_path / "bundles" / "small")
    (loaded,) = loaded_by(["inspect", str(recipes / "small.yaml")], folder=tmp_path)
    assert loaded & HEAVY == set()
    assert not [name for name in loaded if name.startswith("kvfold.export.checkpoint")]

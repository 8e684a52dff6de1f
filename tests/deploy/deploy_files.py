"""The files of docs/deploy as values that tests compare."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kvfold.pipeline.commands.use import serve
from tests.root import ROOT

FOLDER = ROOT / "docs" / "deploy"
DOCKERFILE = FOLDER / "Dockerfile"
UNIT = FOLDER / "kvfold.service"
MANIFESTS = FOLDER / "kubernetes"


def docker_steps() -> list[tuple[str, str]]:
    """(instruction, what follows) of the Dockerfile, without comments, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, rest in re.findall(r"^([A-Z]+) +(.*)$", text, re.M)]


def unit_settings() -> dict[str, list[str]]:
    """Values of each setting of the systemd unit, in order."""
    settings: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M):
        settings.setdefault(name, []).append(value)
    return settings


def manifests() -> dict[str, dict[str, Any]]:
    """Each Kubernetes object by its kind."""
    paths = [path for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml"]
    objects = [each for path in paths for each in yaml.safe_load_all(path.read_text())]
    return {each["kind"]: each for each in objects}


def serve_arguments(words: list[str]) -> dict[str, str]:
    """Options of a `kvfold serve` command line by name; the bundle as `bundle`."""
    bundle, *rest = words
    return {"bundle": bundle} | dict(zip(rest[::2], rest[1::2], strict=True))


def serve_options() -> set[str]:
    """Every option of `kvfold serve`."""
    return {name for parameter in serve.command.params for name in parameter.opts if name.startswith("--")}

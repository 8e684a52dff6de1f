"""llama.cpp, unpacked and built by `make check-gguf`; without it these tests skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.checkpoint.llama_cpp.libllama import LibLlama


@pytest.fixture(scope="session")
def llama_cpp(request: pytest.FixtureRequest) -> Path:
    """Its source, as llama-cpp-python's sdist holds it."""
    folder = request.config.getoption("--llama-cpp")
    if folder is None:
        pytest.skip(
            "Without llama.cpp: `make check-gguf` fetches and builds it, and compares GGUF files with it"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def libllama(llama_cpp: Path) -> LibLlama:
    """Its library."""
    return LibLlama(llama_cpp)

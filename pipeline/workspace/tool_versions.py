"""Which packages made a bundle: the manifest and the report name them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy", "tokenizers", "safetensors")


def tool_versions() -> dict[str, str]:
    """Versions of the packages that take part, those that are installed."""
    versions = {}
    for tool in TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            continue  # a bundle's runtime half needs none of the export tools
    return versions

"""Everything that needs a GPU, held against references: `make gpu-check`, or without an installed kvfold

    python -m tests.gpu.runs.gpu_check --output out --wheels wheels

A file of tests/gpu is a group, a process of its own with few threads; long files are several. What a
group needs and this Python cannot import is named where it is skipped.
"""

from __future__ import annotations

import os
import sys

from tests.gpu.runs.run_groups import ROOT, Group
from tests.gpu.runs.run_options import parser, run_groups

SECONDS = 170.0
TESTS = ROOT / "tests" / "gpu"
# What the tests' own machinery imports, and what single files need besides.
EVERY = ("pytest", "hypothesis", "numpy", "torch", "pydantic", "rich", "click", "cuda.bindings")
NEEDS = {
    "test_kernels": ("triton",),
    "test_onnxruntime_cuda": ("onnxruntime", "onnx", "onnxscript", "triton"),
    "test_gpu_tensorrt_engine": ("triton", "polygraphy"),
    "test_gpu_validate": ("triton", "polygraphy"),
}
# Parts of a file that takes long, as pytest's -k takes them; what is in none of them is one more.
PARTS = {
    "test_kernels": ("(float16 and not bfloat16)", "bfloat16"),
    "test_onnxruntime_cuda": ("(float16_caches and not bfloat16_caches)", "bfloat16_caches", "int8_caches"),
}


def groups() -> list[Group]:
    """The longest first."""
    found = []
    for path in sorted(TESTS.glob("test_*.py"), key=lambda path: (path.stem not in PARTS, path.stem)):
        parts = PARTS.get(path.stem, ())
        for part in (*parts, f"not ({' or '.join(parts)})" if parts else ""):
            name = path.stem.removeprefix("test_") + (f" {part}" if part else "")
            chosen = ("-k", part) if part else ()
            command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
            needs = EVERY + NEEDS.get(path.stem, ())
            found.append(Group(name, (*command, str(path), *chosen, "--gpu-report"), needs))
    return found


def main() -> int:
    """Run the groups side by side; the exit code."""
    options = parser(__doc__ or "", SECONDS).parse_args()
    return run_groups("gpu-check", options, groups, max(2, (os.cpu_count() or 1) // 2), 2)


if __name__ == "__main__":
    sys.exit(main())

"""The figures of kernels and engines on this GPU: `make gpu-bench`, or without an installed kvfold

    python -m tests.gpu.runs.gpu_bench --output out --wheels wheels --bundle bundles/identity

Groups run one after another, so that nothing else is on the card. Kernels are compiled here, for this GPU,
by its tuned table where there is one. Engines are measured where bundles are named that have one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.runs.run_groups import Group
from tests.gpu.runs.run_options import parser, run_groups

SECONDS = 230.0
PARTS = ("copy", "prefill", "windows", "decode")  # of kernel_figures, which needs packages to be imported
KERNELS = ("numpy", "pydantic", "triton", "cuda.bindings")
NEEDS = {"prefill": ("torch",), "decode": ("torch",)}  # for its attention beside ours
ENGINE = ("numpy", "pydantic", "onnxruntime", "cuda.bindings", "tokenizers")


def groups(bundles: Sequence[Path], target: str) -> list[Group]:
    """Kernels, then an engine a bundle."""
    command = (sys.executable, "-m", "tests.gpu.runs.bench_group")
    kernels = [Group(name, (*command, name), KERNELS + NEEDS.get(name, ())) for name in PARTS]
    engines = [
        Group(f"{target} {bundle.name}", (*command, "engine", str(bundle.resolve()), target), ENGINE)
        for bundle in bundles
    ]
    return kernels + engines


def main() -> int:
    """Run the groups one after another; the exit code."""
    options = parser(__doc__ or "", SECONDS)
    options.add_argument(
        "--bundle", type=Path, action="append", default=[], help="with an engine; may repeat"
    )
    options.add_argument("--target", default="cuda", help="of the bundles' engines")
    chosen = options.parse_args()
    return run_groups("gpu-bench", chosen, lambda: groups(chosen.bundle, chosen.target), 1, 8)


if __name__ == "__main__":
    sys.exit(main())

"""Launches two calls of the op in a process whose libcuda is the stub, and prints how that ended.

`python -m tests.plugins.tensorrt.launch_worker KERNELS [all]`; `all` loads every kernel first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.launches import Shapes
from kvfold.plugins.tensorrt.launcher import Launcher
from tests.plugins.tensorrt.attention_models import PRODUCER, SPEC

DECODE = Shapes(tokens=5, sequences=5, table_width=12)
BUFFERS = {name: (index + 1) << 36 for index, name in enumerate((*PRODUCER.inputs, "output"))}
WORKSPACE, STREAM = 1 << 40, 77

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    launcher = Launcher(KernelLibrary.load(directory), directory)
    try:
        if sys.argv[2:] == ["all"]:
            launcher.load_all()
        for _ in range(2):
            launcher.launch(SPEC, DECODE, BUFFERS, WORKSPACE, STREAM)
    except KernelError as error:
        print(error)
    else:
        print("torch" in sys.modules or "triton" in sys.modules)

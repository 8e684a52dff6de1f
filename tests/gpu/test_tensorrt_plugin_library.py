"""The C++ plugin running the plan that was built with the Python one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kvfold.plugins.cuda.cuda_library import library_path
from tests.gpu.engines import read_in_new_process, tensorrt_engine
from tests.gpu.read_texts import read_texts
from tests.gpu.tiny_bundle import TinyBundle


def test_it_gives_the_bits_of_the_python_plugin(
    tiny: TinyBundle, target: str, architectures: tuple[int, ...], tmp_path: Path
) -> None:
    """A process with the C++ library deserialises and runs the plan; its logits are the same, bit for bit."""
    directory = tiny.build(target, architectures)
    with tensorrt_engine(directory, tiny.plan) as engine:
        logits = read_texts(engine, tiny.plan, tiny.texts)
    np.testing.assert_array_equal(read_in_new_process(tiny, directory, tmp_path, library_path()), logits)

"""TensorRT's C++ headers for the tests of the C++ plugin; no wheel that installs has them."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path

from kvfold.pipeline.workspace.fetch import download_wheel

# A package that holds the headers of TensorRT 10.14 among other things; 0.2 MB, never installed.
REQUIREMENT = "kernel-lens==2.0.1"
SHA256 = "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0"
FOLDER = "kernel_lens/include/tensorrt/"


def fetch_tensorrt_headers(cache: Path) -> Path:
    """Folder of the headers below `cache`; downloaded only where it is not there yet.

    Raises:
        OSError: pip cannot fetch the package, or it is another than it should be.
    """
    target = cache / "tensorrt-10.14-headers"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        wheel = download_wheel(REQUIREMENT, Path(scratch))
        if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != SHA256:
            raise OSError(f"{wheel.name} has sha256 {found}, expected {SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(FOLDER)])
        (Path(scratch) / FOLDER).rename(target)
    return target

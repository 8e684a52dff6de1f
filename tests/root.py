"""Where the checkout lies."""

from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]


def build_lock() -> FileLock:
    """Held while a wheel is made: each is made in the checkout's folder `build`."""
    (ROOT / "build").mkdir(exist_ok=True)
    return FileLock(ROOT / "build" / "wheel.lock")

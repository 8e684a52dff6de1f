"""Start a peer's own converter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def run_tool(command: Sequence[str]) -> None:
    """Run it to its end; where it fails, so does this process, and what the tool printed is said last.

    An exception here would print a traceback of ours under the tool's own reason, and hide it.
    """
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"{command[0]} ended with exit code {code}")

"""The compiler of the tests."""

from __future__ import annotations

import os

COMPILER = os.environ.get("CXX", "g++")

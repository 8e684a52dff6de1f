"""aiperf, unchanged, against a server: `python aiperf_profile.py URL MODEL TOKENIZER_FOLDER`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

REQUESTS = 8


def profile(endpoint: str, url: str, model: str, tokenizer: str, results: Path) -> None:
    """A short profile of one endpoint, streamed; raises where a request failed."""
    command = [str(Path(sys.executable).with_name("aiperf")), "profile", "--model", model, "--url", url]
    command += ["--endpoint-type", endpoint, "--streaming", "--tokenizer", tokenizer]
    command += ["--request-count", str(REQUESTS), "--concurrency", "4", "--isl", "64", "--osl", "16"]
    command += ["--use-server-token-count", "--ui", "none", "--artifact-dir", str(results)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    found = json.loads((results / "profile_export_aiperf.json").read_text())
    assert found["request_count"]["avg"] == REQUESTS and not found["error_summary"]
    assert found["time_to_first_token"]["avg"] > 0
    if (
        endpoint != "responses"
    ):  # it reads the usage of `response.completed`, and cut replies are `incomplete`
        assert found["usage_completion_tokens"]["avg"] > 0


def main(url: str, model: str, tokenizer: str) -> None:
    """Each streaming endpoint that it knows and the server has."""
    for endpoint in ("chat", "completions", "responses", "messages"):
        with tempfile.TemporaryDirectory() as results:
            profile(endpoint, url, model, tokenizer, Path(results))
            print(endpoint)


if __name__ == "__main__":
    main(*sys.argv[1:])

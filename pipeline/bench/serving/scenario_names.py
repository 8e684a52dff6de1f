"""The scenarios by name and question, without their code: what `--help` shows."""

from __future__ import annotations

TITLES = {
    "cpu": "CPU of a streamed token and of a request, over the same work in process",
    "own": "CPU of a token beside the engine: scheduler, sampling and text, 16 at once; and of a step",
    "first-token": "time to the first token that HTTP adds to an idle server",
    "streams": "64 streams of the real engine beside LLM.generate of the same prompts",
    "schemas": "what a schema adds to the time between tokens, 8 streams",
    "peers": "64 requests at once and chats of 8 turns, beside llama.cpp's server",
    "aborts": "clients that leave: when their pages are free, and whether any is lost",
    "overload": "ten times what the server can answer, for a minute",
    "sigterm": "SIGTERM while streams run",
    "tier": "pages on a disk: the second turn after a restart, and what writing them adds to a step",
    "soak": "chats, aborts, bad requests and schemas with a tiny cache, for half an hour",
    "trace": "arrivals of a trace, with the prefixes that they share",
}
ON_REQUEST = ("soak", "trace")  # too long, or in need of a file
USUAL = tuple(name for name in TITLES if name not in ON_REQUEST)

"""Why a prompt was computed: what the cache had of it, as a sentence."""

from __future__ import annotations

from kvfold.runtime.metrics import PrefixMatch


def why(prompt_tokens: int, match: PrefixMatch | None, page_size: int) -> str:
    """What was reused of a prompt, and what kept the rest from it.

    Args:
        prompt_tokens: its length.
        match: what the cache had; None: nobody has looked yet.
        page_size: tokens of a page; only whole pages are shared.
    """
    if match is None:
        return "It waits: the cache is asked when it is let in."
    if match.resumed:
        return f"Its session's kept pages held {match.hit_tokens} tokens; only what followed was computed."
    most = (prompt_tokens - 1) // page_size * page_size
    if not most:
        return (
            f"Its {prompt_tokens} tokens fill no page of {page_size} before the last token: nothing to share."
        )
    if match.matched_tokens > match.hit_tokens:
        groups = ", ".join(match.gone) if len(match.gone) < 3 else f"{len(match.gone)} groups"
        return (
            f"{match.matched_tokens} tokens were known, but window pages of {groups} before that point "
            f"are gone: reuse ended at {match.hit_tokens}. What was computed again is kept for the next."
        )
    if match.hit_tokens >= most:
        return "All that can be shared was reused: its whole pages, but for the last token."
    if not match.hit_tokens:
        return (
            f"Its first {page_size} tokens are not in the tree of its tenant: none of its prompts began so, "
            "or it was evicted."
        )
    return (
        f"It left the tree at token {match.matched_tokens}: the {page_size} tokens after it were new, or "
        "evicted."
    )

"""Keep the token out of every text. The cloud itself quotes the first half of it when there are too many calls."""

from __future__ import annotations

SHOWN = "[token]"
SHORTEST = 8
"""Fewer characters in a row may be chance, and tell nobody anything."""
LONGEST_TEXT = 500


def redact(text: str, token: str) -> str:
    """The text without the token or any beginning of it, and no longer than a log line should be."""
    for length in range(len(token), SHORTEST - 1, -1):
        text = text.replace(token[:length], SHOWN)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"

"""What an apply changes in a function, as a unified diff of its manifest."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

COLOURS = {"---": "1", "+++": "1", "@@": "36", "+": "32", "-": "31"}
"""By how a line begins, the longest first."""


def manifest_diff(change: Mapping[str, Any], stream: TextIO) -> Iterator[str]:
    """Lines for ``stream``, in colours if it is a terminal. ``change`` is one of the API's."""
    name, colour = change["name"], stream.isatty() and "NO_COLOR" not in os.environ
    lines = difflib.unified_diff(
        _lines(change["before"]), _lines(change["manifest"]), f"{name} (as it is)", f"{name} (as applied)", lineterm=""
    )
    for line in lines:
        code = next((code for start, code in COLOURS.items() if line.startswith(start)), None) if colour else None
        yield line if code is None else f"\x1b[{code}m{line}\x1b[0m"


def _lines(manifest: Any) -> list[str]:
    import yaml

    # What cannot be printed is escaped. A line for each key, so that a change of one is a line of the diff.
    text: str = yaml.safe_dump(manifest, sort_keys=False, width=10_000, default_flow_style=False, allow_unicode=True)
    return text.splitlines()

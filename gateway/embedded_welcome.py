"""What ``rgrid up`` prints once it is ready: where it is, the key, and a request to try. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gateway.embedded_settings import Options


def welcome(options: Options, folder: Path, key: str, functions: Iterable[Mapping[str, Any]]) -> str:
    """``functions`` as the API lists them."""
    slots = f"{options.slots} slot{'s' if options.slots > 1 else ''}"
    return (
        f"\nRGrid is up: {options.url}, {slots}, state in {folder}\n\n"
        f"  export RGRID_URL={options.url}\n"
        f"  export RGRID_API_KEY={_quoted(key)}\n\n"
        f"Try it:\n\n  {_example(functions)}\n\n"
        "Ctrl-C stops it; the state stays."
    )


def _example(functions: Iterable[Mapping[str, Any]]) -> str:
    """An invocation that works as it stands, if there is a function that needs no params."""
    curl = 'curl -H "Authorization: Bearer $RGRID_API_KEY"'
    for function in functions:
        if not function["manifest"]["spec"].get("params", {}).get("required"):
            return (
                f'{curl} -H "Content-Type: application/json" -H "Prefer: wait=30" -d {{}} '
                f"$RGRID_URL/v1/functions/{function['name']}/invoke"
            )
    return f"{curl} $RGRID_URL/v1/nodes"


def _quoted(text: str) -> str:
    return text if text.replace("_", "").replace("-", "").isalnum() else "'" + text.replace("'", "'\\''") + "'"

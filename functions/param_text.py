"""Params that come as text, from a query or a form: what the schema says of each decides what it is."""

from __future__ import annotations

import re
from typing import Any

from functions.documents import load_json
from functions.errors import RGridError

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,2})?")


def from_text(text: str, types: frozenset[str]) -> Any:
    """The value that ``text`` stands for where a param may have these JSON types; the text itself where it may be text,
    or where it is none of them: then the schema says what is wrong."""
    if not types or "string" in types:
        return text
    value: Any = text
    if types & {"integer", "number"} and _INTEGER.fullmatch(text):
        value = int(text)
    elif "number" in types and _NUMBER.fullmatch(text):
        value = float(text)
    elif "boolean" in types and text in ("true", "false"):
        value = text == "true"
    elif "null" in types and text in ("null", ""):
        value = None
    elif types & {"array", "object"}:
        value = _structure(text)
    return value


def _structure(text: str) -> Any:
    try:
        value = load_json(text.encode())
    except RGridError:
        return text
    return value if isinstance(value, (dict, list)) else text

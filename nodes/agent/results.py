"""A job's ``result.json``, read strictly: what comes through can be stored and means the same to every reader."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

DEPTH = 50
"""The job object and a callback's body wrap it, and readers have limits of their own."""
DIGITS = 256

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class NotAResult(ValueError):
    """The message ends the sentence ``result.json is …``."""


def parse_result(data: bytes) -> Any:
    """Raises ``NotAResult``, whatever the bytes are."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise NotAResult("not UTF-8") from None
    if text.startswith("\ufeff"):
        raise NotAResult("not plain UTF-8: it begins with a byte order mark")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise NotAResult(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise NotAResult(f"nested deeper than {DEPTH} levels") from None
    _check(value)
    return value


def _check(value: Any) -> None:
    """Depth and text, without recursion."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                if _UNSTORABLE.search(each):
                    raise NotAResult("not storable: it contains NUL or half a surrogate pair")
            elif isinstance(each, (list, dict)):
                if depth == DEPTH:
                    raise NotAResult(f"nested deeper than {DEPTH} levels")
                below += each
                if isinstance(each, dict):
                    below += each.values()
        level, depth = below, depth + 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise NotAResult("ambiguous: a key comes twice in one object")
    return made


def _constant(name: str) -> NoReturn:
    raise NotAResult(f"not JSON: {name} is no number")


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise NotAResult(f"not storable: a number has more than {DIGITS} digits")
    return int(text)


def _float(text: str) -> float:
    if len(text) > DIGITS:
        raise NotAResult(f"not storable: a number has more than {DIGITS} digits")
    if math.isinf(value := float(text)):
        raise NotAResult("not storable: a number is too large")
    return value

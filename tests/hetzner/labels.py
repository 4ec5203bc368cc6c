"""Labels and their selectors: ``k``, ``!k``, ``k=v``, ``k==v``, ``k!=v``, ``k in (a,b)``, ``k notin (a,b)``, comma = and."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_WORD = r"[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
KEY = re.compile(rf"^(?:[A-Za-z0-9][-.A-Za-z0-9]{{0,252}}/)?{_WORD}$")
VALUE = re.compile(rf"^(?:{_WORD})?$")
_TERM = re.compile(
    r"^\s*(?:(?P<not>!)\s*)?(?P<key>[^\s!=,()]+)\s*"
    r"(?:(?P<op>==|!=|=)\s*(?P<value>[^\s,()]*)|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?\s*$"
)

Labels = Mapping[str, str]


def valid(labels: object) -> bool:
    return isinstance(labels, dict) and all(
        isinstance(value, str) and KEY.match(key) and VALUE.match(value) and not key.startswith("hetzner.cloud/")
        for key, value in labels.items()
    )


def selector(text: str) -> Callable[[Labels], bool]:
    """Raises ``ValueError`` for what is no selector."""
    terms = [_term(part) for part in re.split(r",(?![^(]*\))", text)] if text.strip() else []
    return lambda labels: all(term(labels) for term in terms)


def _term(text: str) -> Callable[[Labels], bool]:
    match = _TERM.match(text)
    if match is None or not KEY.match(match["key"]) or (match["not"] and (match["op"] or match["set"])):
        raise ValueError(f"no label selector: {text!r}")
    key = match["key"]
    if match["not"]:
        return lambda labels: key not in labels
    if match["set"]:
        values, inside = {value.strip() for value in match["values"].split(",")}, match["set"] == "in"
        # As in Kubernetes, whose grammar this is: what has not the key is not in the set.
        return lambda labels: (labels.get(key) in values) == inside
    if match["op"] == "!=":
        return lambda labels: labels.get(key) != match["value"]
    if match["op"]:
        return lambda labels: labels.get(key) == match["value"]
    return lambda labels: key in labels

"""``{{ path.to.value }}``: look-ups in texts of a manifest, and nothing more: no filters, no code.

A text is taken apart once, when its manifest is read. Filling it in costs no more than the texts that go in, which a
``Budget`` bounds: a short template over a long value must not become gigabytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from functions.documents import shown

Roots = Mapping[str, frozenset[str] | None]
"""What a look-up may begin with, and which names may follow; None: any path."""

ROOTS: Roots = {
    "params": None,
    "trigger": frozenset({"kind", "name"}),
    "job": frozenset({"id"}),
    "function": frozenset({"name", "version"}),
}
"""In the template of a job."""
CHAIN_ROOTS: Roots = {
    **ROOTS,
    "outputs": None,
    "result": None,
    "job": frozenset({"id", "status", "attempt", "exit_code"}),
    "error": frozenset({"code", "message"}),
}
"""In the params of a callback's function: they are about the job that has ended."""
WEBHOOK_ROOTS: Roots = {
    "body": None,
    "header": None,
    "query": None,
    "trigger": frozenset({"kind", "name"}),
    "function": frozenset({"name", "version"}),
}
"""In the params of a webhook: they are about the request."""
SCHEDULE_ROOTS: Roots = {
    "schedule": frozenset({"time"}),
    "trigger": frozenset({"kind", "name"}),
    "function": frozenset({"name", "version"}),
}
"""In the params of a schedule: they are about a planned time."""
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("outputs", "result", "error"), "in the params of a callback's function, when the job has ended"),
    **dict.fromkeys(("body", "header", "query"), "in the params of a webhook: give the job a param of it"),
    "schedule": "in the params of a schedule: give the job a param of it",
}

DEEPEST = 32
_SEGMENT = re.compile(r"[\w-]+")
_MOST_EXACT = 10**15
"""Whole numbers above this are not exact as floats, and are written with an exponent."""


class BadTemplate(ValueError):
    """The text has a look-up that can never work."""


class MissingValue(Exception):
    """A look-up finds nothing, or something that cannot stand at its place."""


class Budget:
    """Characters that several texts together may still have."""

    def __init__(self, size: int) -> None:
        self.size = self.left = size

    def check(self) -> None:
        if self.left < 0:
            raise MissingValue(f"all of it together has more than {self.size} characters with the values filled in")

    def take(self, text: str) -> str:
        self.left -= len(text)
        self.check()
        return text


@dataclass(frozen=True, slots=True)
class Lookup:
    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True, slots=True)
class Template:
    """The parts of ``source`` in order: plain text and look-ups."""

    source: str
    parts: tuple[str | Lookup, ...]

    def __str__(self) -> str:
        return self.source

    @property
    def lookup(self) -> Lookup | None:
        """The look-up that is all of the text."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return only if isinstance(only, Lookup) else None

    @property
    def lookups(self) -> list[Lookup]:
        return [part for part in self.parts if isinstance(part, Lookup)]


def parse(text: str, roots: Roots = ROOTS) -> Template:
    """Take a text apart; raises ``BadTemplate``. ``}}`` alone is plain text, ``{{`` always begins a look-up."""
    parts: list[str | Lookup] = []
    at = 0
    while (begin := text.find("{{", at)) >= 0:
        if begin > at:
            parts.append(text[at:begin])
        end = text.find("}}", begin + 2)
        if end < 0:
            raise BadTemplate("{{ is not closed: write {{ params.name }}")
        parts.append(_lookup(text[begin + 2 : end].strip(" \t\r\n"), roots))
        at = end + 2
    if at < len(text):
        parts.append(text[at:])
    return Template(text, tuple(parts))


def find(lookup: Lookup, roots: Mapping[str, Any]) -> Any:
    """What the look-up finds, of any JSON type; raises ``MissingValue``."""
    value: Any = roots
    for segment in lookup.path:
        if isinstance(value, Mapping) and segment in value:
            value = value[segment]
        elif isinstance(value, list) and segment.isdecimal() and segment.isascii() and int(segment[:9]) < len(value):
            value = value[int(segment[:9])]
        else:
            raise MissingValue(f"{lookup} has no value")
    return value


def text_of(template: Template, roots: Mapping[str, Any], budget: Budget) -> str:
    """Filled in where only text can stand, as in a command.

    There a text that is one look-up may also find an object or a list, which becomes compact JSON; raises
    ``MissingValue`` for null, as for what is not there.
    """
    budget.check()  # once it is spent, nothing more is worth its time
    if template.lookup is not None:
        value = find(template.lookup, roots)
        if isinstance(value, (dict, list)):
            return budget.take(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    # Added up part by part, so that the budget ends it before the memory does.
    return "".join(budget.take(part if isinstance(part, str) else _inserted(part, roots)) for part in template.parts)


def _lookup(inner: str, roots: Roots) -> Lookup:
    if not inner:
        raise BadTemplate("{{ }} names no value: write {{ params.name }}")
    path = tuple(inner.split("."))
    for segment in path:
        if not _SEGMENT.fullmatch(segment):
            raise BadTemplate(
                f"{shown(inner)} is not a path: names of letters, digits, _ and - with dots between them,"
                " no filters and no code"
            )
    if len(path) > DEEPEST:
        raise BadTemplate(f"{shown(inner)} is a path of more than {DEEPEST} names")
    _check_root(path, roots)
    return Lookup(path)


def _check_root(path: tuple[str, ...], roots: Roots) -> None:
    root, rest = path[0], path[1:]
    if root in ELSEWHERE and root not in roots:
        raise BadTemplate(f"{root} exists only {ELSEWHERE[root]}")
    if root not in roots:
        raise BadTemplate(f"there is no {shown(root)}: a path begins with {', '.join(roots)}")
    if path == ("header",):  # those with secrets, too
        raise BadTemplate("header alone is all of them: write header.name")
    names = roots[root]
    if names is not None and (len(rest) != 1 or rest[0] not in names):
        known = " or ".join(f"{root}.{name}" for name in sorted(names))
        raise BadTemplate(f"{shown('.'.join(path))} does not exist: it may be {known}")


def _inserted(lookup: Lookup, roots: Mapping[str, Any]) -> str:
    value = find(lookup, roots)
    if value is None:
        raise MissingValue(f"{lookup} is null, which is no text")
    if isinstance(value, (dict, list)):
        kind: Literal["an object", "a list"] = "an object" if isinstance(value, dict) else "a list"
        raise MissingValue(f"{lookup} is {kind}, which cannot stand inside a longer text")
    return _scalar(value)


def _scalar(value: str | float | bool) -> str:
    if isinstance(value, str):
        return value
    # 320.0 is the same JSON number as 320, and programs that want a whole number want it written like one.
    if isinstance(value, float) and value.is_integer() and abs(value) < _MOST_EXACT:
        return str(int(value))
    return json.dumps(value)

"""Defaults of a JSON Schema, filled into params that lack them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from functions.errors import FieldError, Invalid
from functions.schema_outline import Outline, Subschema

MOST_STEPS = 50_000
"""Some 50 ms."""
MOST_FILLED_BYTES = 1024 * 1024
"""A long default in each of many items must not become gigabytes."""


class Defaults:
    """Where a schema has defaults, found once."""

    def __init__(self, outline: Outline) -> None:
        self._root = outline.root
        self.of = _defaults(outline)
        self.leading = _leading(outline)

    def fill_in(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A completed copy; what is complete is shared with ``params``. Raises ``Invalid`` if that grows too large."""
        filled: dict[str, Any] = _Filling(self).value(self._root, dict(params))
        return filled


def _defaults(outline: Outline) -> dict[Subschema, Any]:
    """The default for a value that a subschema is for: its own, or of one that must hold with it."""
    found: dict[Subschema, Any] = {}
    for sub in outline.inside_out:
        holders = [sub.keys["default"]] if "default" in sub.keys else [found[t] for t in sub.certain if t in found]
        if holders:
            found[sub] = holders[0]
    return found


def _leading(outline: Outline) -> frozenset[Subschema]:
    """The subschemas with a default in them or behind them: the rest need not be walked through."""
    outer: dict[Subschema, list[Subschema]] = {}
    for sub in outline.subschemas:
        inner = [*sub.certain, *sub.named.values(), *sub.positions]
        inner += [sub.each[key] for key in ("additionalProperties", "items") if key in sub.each]
        for one in inner:
            outer.setdefault(one, []).append(sub)
    found = {sub for sub in outline.subschemas if "default" in sub.keys}
    stack = list(found)
    while stack:
        for sub in outer.get(stack.pop(), ()):
            if sub not in found:
                found.add(sub)
                stack.append(sub)
    return frozenset(found)


class _Filling:
    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults.of
        self._leads = defaults.leading
        self._steps = MOST_STEPS
        self._bytes = MOST_FILLED_BYTES

    def value(self, sub: Subschema, value: Any) -> Any:
        if sub not in self._leads or not isinstance(value, (dict, list)):
            return value
        self._steps -= 1 + len(sub.named)
        if self._steps < 0:
            raise _too_much("the params have too many values to fill defaults into")
        for inner in sub.certain:
            value = self.value(inner, value)
        return self._members(sub, value) if isinstance(value, dict) else self._items(sub, value)

    def _members(self, sub: Subschema, value: dict[str, Any]) -> dict[str, Any]:
        completed = dict(value)
        for name, inner in sub.named.items():
            if inner in self._leads:
                if name in completed:
                    completed[name] = self.value(inner, completed[name])
                elif inner in self._defaults:
                    completed[name] = self._copy(self._defaults[inner])
        others = sub.each.get("additionalProperties")
        # Which members a pattern takes is for the library to say: Python's patterns are others.
        if others is not None and others in self._leads and not sub.patterned:
            for name in value.keys() - sub.named.keys():
                completed[name] = self.value(others, completed[name])
        return completed

    def _items(self, sub: Subschema, value: list[Any]) -> list[Any]:
        completed = list(value)
        for index, (inner, item) in enumerate(zip(sub.positions, value, strict=False)):
            completed[index] = self.value(inner, item)
        rest = sub.each.get("items")
        if rest is not None and rest in self._leads:
            first = len(sub.positions)
            completed[first:] = [self.value(rest, item) for item in completed[first:]]
        return completed

    def _copy(self, default: Any) -> Any:
        if not isinstance(default, (dict, list, str)):
            return default
        self._bytes -= len(json.dumps(default, ensure_ascii=False))
        if self._bytes < 0:
            raise _too_much(f"with defaults filled in the params are larger than {MOST_FILLED_BYTES} bytes")
        return copy.deepcopy(default)


def _too_much(message: str) -> Invalid:
    return Invalid(message, code="params_invalid", errors=[FieldError("", message)])

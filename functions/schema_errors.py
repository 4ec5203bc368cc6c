"""Why params do not fit their schema: pointers and plain words, in bounded time.

The library says quickly whether a value is valid, but slowly why not: each error comes with a copy of the value
around it and with the errors of every branch. So it is asked for small values only; of a large one, for those parts
that are refused by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import jsonschema_rs

from functions.documents import ERRORS, pointer
from functions.errors import FieldError
from functions.schema_outline import Outline, Path, Subschema, capped

Validator = jsonschema_rs.Draft202012Validator

SMALL = 20_000
"""Values times checks of each times values that are copied; some 25 ms."""
MOST_CHECKS = 1_500_000
COMPILING = 1000
"""Compiling a subschema takes as long as so many checks."""
PART = 30
"""So does handing one part of a value to the library."""
CHARACTERS = 1000
"""Copying so many characters takes as long as copying a value."""

Place = tuple[str | int, ...]
Part = tuple[Subschema, Place, Any]


def measure(value: Any, most: int) -> tuple[int, int]:
    """How many values it has, itself included, and characters in texts and keys; stops soon above ``most`` values."""
    values, characters, stack = 1, 0, [value]
    while stack and values <= most:
        item = stack.pop()
        kind = type(item)  # of what a reader of JSON makes: half the time of asking isinstance for each
        if kind is dict:
            values += len(item)
            characters += len("".join(item))
            stack.extend(item.values())
        elif kind is list:
            values += len(item)
            stack.extend(item)
        elif kind is str:
            characters += len(item)
    return values, characters


def explain(outline: Outline, compiled: Callable[[Path], Validator], checks: int, params: Any) -> list[FieldError]:
    """The first errors of params that were refused, at least one. ``checks``: how many look at one value."""
    return list(islice(_Explanation(outline, compiled, checks).of(params), ERRORS))


class _Explanation:
    def __init__(self, outline: Outline, compiled: Callable[[Path], Validator], checks: int) -> None:
        self._outline, self._compiled, self._checks = outline, compiled, checks
        self._validators: dict[Path, Validator] = {}
        self._left = MOST_CHECKS

    def of(self, params: Any) -> Iterator[FieldError]:
        told = False
        stack: list[Part] = [(self._outline.root, (), params)]
        while stack:
            sub, place, value = stack.pop()
            values, characters = measure(value, SMALL)
            size = values + characters // CHARACTERS
            if size * size * self._checks <= SMALL and (validator := self._at(sub)) is not None:
                for error in validator.iter_errors(value):
                    told = True
                    yield from _told(place, error)
            elif parts := list(islice(self._refused_parts(sub, place, value), ERRORS)):
                stack += reversed(parts)
            else:
                told = True
                yield FieldError(pointer(*place), "does not fit the schema")
        if not told:
            yield FieldError("", "does not fit the schema")

    def _refused_parts(self, sub: Subschema, place: Place, value: Any) -> Iterator[Part]:
        """Members and items of the value that the subschema refuses whatever is around them."""
        for inner, key, part in _parts(sub, value):
            validator = self._at(inner)
            self._left -= PART + self._checks * measure(part, SMALL)[0]
            if validator is None or self._left < 0:
                return
            if not validator.is_valid(part):
                yield inner, (*place, key), part

    def _at(self, sub: Subschema) -> Validator | None:
        """None once that has taken long enough."""
        if sub.at not in self._validators:
            self._left -= COMPILING * len(self._outline.subschemas)
            if self._left < 0:
                return None
            self._validators[sub.at] = self._compiled(sub.at)
        return self._validators[sub.at]


def _parts(sub: Subschema, value: Any) -> Iterator[tuple[Subschema, str | int, Any]]:
    """Members and items of the value, each with a subschema that it must fit."""
    stack, seen = [sub], {sub}
    while stack:
        inner = stack.pop()
        yield from _own_parts(inner, value)
        for other in inner.certain:
            if other not in seen:
                seen.add(other)
                stack.append(other)


def _own_parts(sub: Subschema, value: Any) -> Iterator[tuple[Subschema, str | int, Any]]:
    if isinstance(value, dict):
        yield from ((inner, name, value[name]) for name, inner in sub.named.items() if name in value)
        others = sub.each.get("additionalProperties")
        if others is not None and others.keys and not sub.patterned:
            yield from ((others, name, part) for name, part in value.items() if name not in sub.named)
    elif isinstance(value, list):
        yield from ((inner, index, part) for index, (inner, part) in enumerate(zip(sub.positions, value, strict=False)))
        rest = sub.each.get("items")
        if rest is not None:
            first = len(sub.positions)
            yield from ((rest, first + index, part) for index, part in enumerate(value[first:]))


def _told(place: Place, error: jsonschema_rs.ValidationError) -> Iterator[FieldError]:
    at = (*place, *error.instance_path)
    match error.kind:
        case jsonschema_rs.ValidationErrorKind.Required(name):
            yield FieldError(pointer(*at, name), "is required")
        case jsonschema_rs.ValidationErrorKind.AdditionalProperties(
            names
        ) | jsonschema_rs.ValidationErrorKind.UnevaluatedProperties(names):
            yield from (FieldError(pointer(*at, name), "there is no such param") for name in names)
        case jsonschema_rs.ValidationErrorKind.FalseSchema():
            yield FieldError(pointer(*at), "there is no such param" if at else "no params are allowed")
        case _:
            yield FieldError(pointer(*at), capped(error.message))

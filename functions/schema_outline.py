"""The outline of a JSON Schema 2020-12: its subschemas, which value each of them looks at, and what is wrong with them.

Only what can be checked in bounded time passes: references stay inside the schema and point at a subschema of it, none
leads back to itself at the same value, and there are no more than so many of anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from functions.documents import pointer, shown
from functions.errors import FieldError

MOST_SUBSCHEMAS = 500
MOST_VALUES = 5000
MOST_PATTERNS = 64
LONGEST_PATTERN = 1000

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFUSED = {"$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"}

_CERTAIN = ("allOf",)
_PERHAPS_LISTS = ("anyOf", "oneOf")
_PERHAPS = ("not", "if", "then", "else")
_EACH = ("additionalProperties", "items", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties")
_UNUSED = ("$defs", "definitions")

_meta = jsonschema_rs.Draft202012Validator({"$ref": DIALECT}, mask="the value")

Path = tuple[str, ...]


@dataclass(slots=True, eq=False)
class Subschema:
    """``keys`` is empty for ``true`` and ``false``.

    Of the subschemas in it, ``certain`` must hold for the same value (``allOf``, ``$ref``), ``perhaps`` may have to;
    ``named``, ``patterned`` and ``each`` look at what is in the value: of one member or item at most one of ``named``
    and of ``positions``, of the others perhaps all.
    """

    at: Path
    keys: Mapping[str, Any]
    certain: list[Subschema] = field(default_factory=list)
    perhaps: list[Subschema] = field(default_factory=list)
    named: dict[str, Subschema] = field(default_factory=dict)
    positions: list[Subschema] = field(default_factory=list)
    patterned: list[Subschema] = field(default_factory=list)
    each: dict[str, Subschema] = field(default_factory=dict)

    @property
    def patterns(self) -> list[tuple[Path, str]]:
        """Its regular expressions with their places in it."""
        own, members = self.keys.get("pattern"), self.keys.get("patternProperties")
        found: list[tuple[Path, str]] = [(("pattern",), own)] if isinstance(own, str) else []
        if isinstance(members, dict):
            found += [(("patternProperties", pattern), pattern) for pattern in members]
        return found

    @property
    def here(self) -> Iterator[Subschema]:
        yield from self.certain
        yield from self.perhaps


class Outline:
    """``subschemas`` has the whole schema first and the others behind those that they stand in.

    ``faults`` has pointers into the schema. With faults in it the outline is not good for anything else.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.subschemas: list[Subschema] = []
        self.faults: list[FieldError] = []
        self._by_path: dict[Path, Subschema] = {}
        self._patterns = 0
        if _values_in(schema, MOST_VALUES) > MOST_VALUES:
            self._fault((), f"the schema has more than {MOST_VALUES} values")
            return
        self.root = self._read(schema, ())
        if len(self.subschemas) > MOST_SUBSCHEMAS:
            self._fault((), f"the schema has more than {MOST_SUBSCHEMAS} subschemas")
        if self._patterns > MOST_PATTERNS:
            self._fault((), f"the schema has more than {MOST_PATTERNS} patterns")
        for sub in self.subschemas:
            self._refer(sub)
        if not self.faults:
            self.inside_out = self._inside_out()

    def find(self, path: Path) -> Subschema | None:
        return self._by_path.get(path)

    def _fault(self, at: Path, message: str) -> None:
        self.faults.append(FieldError(pointer(*at), message))

    def _read(self, schema: Any, at: Path) -> Subschema:
        sub = Subschema(at, schema if isinstance(schema, dict) else {})
        if not isinstance(schema, (dict, bool)):
            self._fault(at, "must be a schema: a mapping, true or false")
        self.subschemas.append(sub)
        self._by_path[at] = sub
        shallow = dict(sub.keys)
        for key in _CERTAIN:
            sub.certain += self._list(sub, key, shallow)
        for key in _PERHAPS_LISTS:
            sub.perhaps += self._list(sub, key, shallow)
        sub.perhaps += self._one(sub, _PERHAPS, shallow).values()
        sub.perhaps += self._mapping(sub, "dependentSchemas", shallow).values()
        sub.named = self._mapping(sub, "properties", shallow)
        sub.patterned = list(self._mapping(sub, "patternProperties", shallow).values())
        sub.positions = self._list(sub, "prefixItems", shallow)
        sub.each = self._one(sub, _EACH, shallow)
        for key in _UNUSED:
            self._mapping(sub, key, shallow)
        self._check_keys(sub, shallow)
        return sub

    def _list(self, sub: Subschema, key: str, shallow: dict[str, Any]) -> list[Subschema]:
        given = sub.keys.get(key)
        if not isinstance(given, list):
            return []
        shallow[key] = [True] * len(given)
        return [self._read(item, (*sub.at, key, str(index))) for index, item in enumerate(given)]

    def _mapping(self, sub: Subschema, key: str, shallow: dict[str, Any]) -> dict[str, Subschema]:
        given = sub.keys.get(key)
        if not isinstance(given, dict):
            return {}
        shallow[key] = dict.fromkeys(given, True)
        return {name: self._read(item, (*sub.at, key, name)) for name, item in given.items()}

    def _one(self, sub: Subschema, keys: tuple[str, ...], shallow: dict[str, Any]) -> dict[str, Subschema]:
        found = {key: self._read(sub.keys[key], (*sub.at, key)) for key in keys if key in sub.keys}
        shallow.update(dict.fromkeys(found, True))
        return found

    def _check_keys(self, sub: Subschema, shallow: dict[str, Any]) -> None:
        """Against the metaschema, one subschema at a time: all at once would tell each fault many times over."""
        for key in _REFUSED & shallow.keys():
            self._fault((*sub.at, key), f"{key} is not supported: write $ref with a pointer, #/$defs/name")
        if sub.at and "$id" in shallow:
            self._fault((*sub.at, "$id"), "a name of its own can have the whole schema only")
        if shallow.get("$schema", DIALECT) not in (DIALECT, DIALECT + "#"):
            self._fault((*sub.at, "$schema"), f"the params are described in JSON Schema 2020-12: {DIALECT}")
            return
        shallow.pop("$schema", None)
        patterns = sub.patterns
        self._patterns += len(patterns)
        if any(len(pattern) > LONGEST_PATTERN for _, pattern in patterns):
            self._fault(sub.at, f"a pattern has more than {LONGEST_PATTERN} characters")
        elif not _meta.is_valid(shallow):
            seen = set()
            for error in _meta.iter_errors(shallow):
                place = tuple(str(part) for part in error.instance_path)
                if place not in seen:
                    seen.add(place)
                    self._fault((*sub.at, *place), capped(error.message))

    def _refer(self, sub: Subschema) -> None:
        ref = sub.keys.get("$ref")
        if not isinstance(ref, str):
            return
        if ref != "#" and not ref.startswith("#/"):
            self._fault((*sub.at, "$ref"), "must point into this schema, as in #/$defs/name: nothing is fetched")
            return
        path = tuple(part.replace("~1", "/").replace("~0", "~") for part in unquote(ref[1:]).split("/")[1:])
        target = self.find(path)
        if target is None:
            self._fault((*sub.at, "$ref"), f"there is no schema at {shown(ref)}")
        else:
            sub.certain.append(target)

    def _inside_out(self) -> list[Subschema]:
        """Each subschema behind those that look at the same value for it."""
        order: list[Subschema] = []
        begun: set[Subschema] = set()
        done: set[Subschema] = set()
        for start in self.subschemas:
            stack = [(start, start.here)] if start not in begun else []
            begun.add(start)
            while stack:
                sub, rest = stack[-1]
                inner = next(rest, None)
                if inner is None:
                    stack.pop()
                    done.add(sub)
                    order.append(sub)
                elif inner not in begun:
                    begun.add(inner)
                    stack.append((inner, inner.here))
                elif inner not in done:
                    self._fault(sub.at, "refers to itself for the same value, which never ends")
                    return order
        return order


def capped(message: str, most: int = 300) -> str:
    """A message of the library, which may quote a whole schema."""
    return message if len(message) <= most else message[:most] + "…"


def _values_in(value: Any, most: int) -> int:
    """Keys and values in it; more than ``most`` as soon as that is plain."""
    count, stack = 1, [value]
    while stack and count <= most:
        item = stack.pop()
        if isinstance(item, (dict, list)):
            count += len(item)
            stack.extend(item.values() if isinstance(item, dict) else item)
    return count

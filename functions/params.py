"""``spec.params``: a JSON Schema 2020-12 that the params of a job are completed by and checked against.

Nothing is fetched, and what a check may cost is bounded: the schema when it is applied (``schema_outline.py``,
``schema_cost.py``), patterns by an engine that does not go back over a text, and the params by how many values and
characters they have times how often the schema looks at each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any
from urllib.parse import quote

import jsonschema_rs

from functions.defaults import Defaults
from functions.documents import ERRORS, pointer
from functions.errors import FieldError, Invalid
from functions.schema_cost import MOST_CHECKS_PER_VALUE, checks_per_value, patterns_per_value
from functions.schema_errors import Validator, explain, measure
from functions.schema_outline import Outline, Path, Subschema, capped

MOST_CHECKS = 1_500_000
"""Some 50 ms."""
MOST_VALUES = 150_000
"""Counted and compared in some 40 ms, small objects being the dearest."""
MOST_MATCHED = 1_000_000
"""Characters times the patterns that read each; at worst some 50 ms."""
_HERE = "urn:rgrid:params"
_ANY_PATTERN = jsonschema_rs.RegexOptions(size_limit=1024 * 1024, dfa_size_limit=1024 * 1024)
_SMALL_PATTERN = jsonschema_rs.RegexOptions(size_limit=128 * 1024)
MOST_LARGE_PATTERNS = 2
"""Those with large counts of large classes take some 20 ms each to compile: [^\\s@]{1,200}."""


class ParamsSchema:
    """Taken apart and compiled when it is first used: most versions that are read are only looked at."""

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        self.schema = schema

    def faults(self) -> list[FieldError]:
        """What is wrong with the schema itself, with pointers into it."""
        if self.schema is None:
            return []
        outline = self._outline
        if outline.faults:
            return outline.faults[:ERRORS]
        if self.schema.get("type", "object") != "object":
            return [FieldError("/type", "must be object: params are always one")]
        if checks_per_value(outline) > MOST_CHECKS_PER_VALUE:
            return [FieldError("", "the schema has so many branches or keys that a check may take too long")]
        try:
            return self._bad_patterns() or self._bad_defaults()
        except jsonschema_rs.ValidationError as error:
            return [FieldError(pointer(*error.instance_path), capped(error.message))]

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The params with defaults filled in; raises ``Invalid`` with pointers if they break the schema then.

        Defaults of properties are filled in, also in objects and lists that are there, and behind ``allOf`` and
        ``$ref``; not in branches that may not hold (``anyOf``, ``if``). A default itself is taken as it is.
        """
        if self.schema is None:
            return dict(params)
        completed = self._defaults.fill_in(params)
        self._check_size(completed)
        if not self._validator.is_valid(completed):
            errors = explain(self._outline, self._at, self._checks, completed)
            first = errors[0]
            where = f"params{first.pointer}" if first.pointer else "the params"
            raise Invalid(f"{where}: {first.message}", code="params_invalid", errors=errors)
        return completed

    def may_have(self, path: tuple[str, ...]) -> bool:
        """False if the schema plainly lets no params through that have a value at ``path``."""
        sub = self._outline.root if self.schema is not None else None
        for name in path:
            if sub is None:
                return True
            if name not in sub.named and "patternProperties" not in sub.keys:
                return sub.keys.get("additionalProperties") is not False
            sub = sub.named.get(name)
        return True

    def types_of(self, name: str) -> frozenset[str]:
        """The JSON types that the schema plainly lets a param have; none when it does not say."""
        sub = self._outline.root if self.schema is not None else None
        named = None if sub is None else next((each.named[name] for each in _at_once(sub) if name in each.named), None)
        for each in _at_once(named) if named is not None else ():
            given = each.keys.get("type")
            if given is not None:
                return frozenset([given] if isinstance(given, str) else given)
        return frozenset()

    def has_default(self, name: str) -> bool:
        """Whether a param that is missing gets a value."""
        sub = self._outline.root if self.schema is not None else None
        named = [each.named[name] for each in _at_once(sub) if name in each.named] if sub is not None else []
        return any("default" in part.keys for each in named for part in _at_once(each))

    @cached_property
    def _outline(self) -> Outline:
        return Outline(self.schema or {})

    @cached_property
    def _validator(self) -> Validator:
        return self._at(())

    @cached_property
    def _defaults(self) -> Defaults:
        return Defaults(self._outline)

    @cached_property
    def _checks(self) -> int:
        return checks_per_value(self._outline)

    @cached_property
    def _patterns(self) -> int:
        return patterns_per_value(self._outline)

    @cached_property
    def _registry(self) -> jsonschema_rs.Registry:
        return jsonschema_rs.Registry(
            [(_HERE, {key: value for key, value in (self.schema or {}).items() if key != "$id"})]
        )

    def _at(self, path: Path) -> Validator:
        """What checks a value against the subschema at ``path``."""
        return self._compiled({"$ref": f"{_HERE}#{quote(pointer(*path))}"})

    def _compiled(self, schema: dict[str, Any]) -> Validator:
        return jsonschema_rs.Draft202012Validator(
            schema,
            registry=self._registry,
            offline=True,
            validate_formats=True,
            pattern_options=_ANY_PATTERN,
            mask="the value",
        )

    def _bad_patterns(self) -> list[FieldError]:
        large = 0
        for sub in self._outline.subschemas:
            for place, pattern in sub.patterns:
                if _compiles(pattern, _SMALL_PATTERN):
                    continue
                large += 1
                if large > MOST_LARGE_PATTERNS or not _compiles(pattern, _ANY_PATTERN):
                    message = "cannot be used: patterns have no look-around, no back references and a bounded size"
                    return [FieldError(pointer(*sub.at, *place), message)]
        return []

    def _bad_defaults(self) -> list[FieldError]:
        """Defaults that their own subschemas refuse: each params without them would be refused."""
        self._at(())  # raises if the schema cannot be compiled
        defaults = {str(n): sub for n, sub in enumerate(self._outline.subschemas) if "default" in sub.keys}
        if not defaults:
            return []
        values = {name: sub.keys["default"] for name, sub in defaults.items()}
        properties = {name: {"$ref": f"{_HERE}#{quote(pointer(*sub.at))}"} for name, sub in defaults.items()}
        if self._compiled({"properties": properties}).is_valid(values):
            return []
        bad = (sub for sub in defaults.values() if not self._at(sub.at).is_valid(sub.keys["default"]))
        return [FieldError(pointer(*sub.at, "default"), "does not fit its own schema") for sub in islice(bad, ERRORS)]

    def _check_size(self, params: Mapping[str, Any]) -> None:
        most = min(MOST_VALUES, MOST_CHECKS // self._checks)
        values, characters = measure(params, most)
        if values > most:
            message = f"the params have more than {most} values, too many to check against this schema"
            raise Invalid(message, code="params_invalid", errors=[FieldError("", message)])
        if characters * self._patterns > MOST_MATCHED:
            message = "the params have too much text to match against the patterns of this schema"
            raise Invalid(message, code="params_invalid", errors=[FieldError("", message)])


def _at_once(sub: Subschema) -> Iterator[Subschema]:
    """The subschema and those that must hold with it."""
    yield sub
    for each in sub.certain:
        yield from _at_once(each)


def _compiles(pattern: str, options: jsonschema_rs.RegexOptions) -> bool:
    try:
        Validator({"pattern": pattern}, pattern_options=options)
    except jsonschema_rs.ValidationError:
        return False
    return True

"""The types that keys of a manifest have: each reads one form of text and says in plain words what is wrong with it.

They stand in ``Annotated[…]``. A fault is a pydantic error whose type is the ``code`` of the problem, so that one pass
finds all faults of a document; ``functions/faults.py`` makes pointers of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from functions import expressions, quantities
from functions.expressions import BadTemplate

T = TypeVar("T")

INVALID, BAD_TEMPLATE, BAD_URL = "manifest_invalid", "template_invalid", "url_refused"

DURATION = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$"
CPU = r"^[0-9]+(\.[0-9]+)?m?$"
SIZE = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$"
"""For the JSON Schema only: ``functions/quantities.py`` reads."""


class Part(BaseModel):
    """A mapping of a manifest: keys as users write them, unknown ones refused, nothing coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def fault(message: str, code: str = INVALID, *, at: str = "") -> PydanticCustomError:
    """``at``: a pointer from the place that is being read to the one that is at fault."""
    # As a value, not as the format: messages quote what users wrote, braces included.
    return PydanticCustomError(code, "{message}", {"message": message, "at": at})


@dataclass(frozen=True, slots=True)
class ReadAs:
    """A value that ``read`` makes of what stands in the document, and ``write`` turns back into text."""

    read: Callable[[object], Any]
    write: Callable[[Any], Any]
    json_schema: Mapping[str, Any] = field(hash=False)  # typing puts annotations into sets

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(self.write)
        return core_schema.no_info_plain_validator_function(self.read, serialization=written)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        return dict(self.json_schema)


def duration_between(least: timedelta, most: timedelta) -> ReadAs:
    def read(value: object) -> timedelta:
        if not isinstance(value, str):
            raise fault("must be a duration with its unit: write 30s, 10m or 1h30m")
        return _between(_parsed(quantities.parse_duration, value), least, most, quantities.format_duration)

    schema = {"type": "string", "minLength": 1, "maxLength": 40, "pattern": DURATION}
    return ReadAs(read, quantities.format_duration, schema)


def cpu_between(least: float, most: float) -> ReadAs:
    def read(value: object) -> float:
        return _between(_parsed(quantities.parse_cpu, value), least, most, quantities.format_cpu)

    return ReadAs(read, quantities.format_cpu, {"type": ["string", "number"], "pattern": CPU, "minimum": least})


def size_between(least: int, most: int) -> ReadAs:
    def read(value: object) -> int:
        return _between(_parsed(quantities.parse_bytes, value), least, most, quantities.format_bytes)

    return ReadAs(read, quantities.format_bytes, {"type": ["string", "integer"], "pattern": SIZE, "minimum": least})


def template(most_bytes: int) -> ReadAs:
    """Text with look-ups in it, taken apart."""

    def read(value: object) -> expressions.Template:
        if not isinstance(value, str):
            raise fault(f"must be text{quoting_hint(value)}")
        if len(value.encode()) > most_bytes:
            raise fault(f"is longer than {most_bytes} bytes")
        try:
            return expressions.parse(value)
        except BadTemplate as error:
            raise fault(str(error), BAD_TEMPLATE) from None

    return ReadAs(read, str, {"type": "string"})


@dataclass(frozen=True, slots=True)
class Check:
    """A check of a value, and as much of it as a JSON Schema can say; ``before``: of the value as it stands."""

    check: Callable[[Any], Any]
    json_schema: Mapping[str, Any] = field(hash=False)
    before: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        wrap = (
            core_schema.no_info_before_validator_function
            if self.before
            else core_schema.no_info_after_validator_function
        )
        return wrap(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        if "$ref" in described:
            return described
        counted = {"array": "Items", "object": "Properties"}.get(str(described.get("type")))
        said = {key.replace("Entries", counted or "Entries"): value for key, value in self.json_schema.items()}
        return {**described, **said}


def checked(check: Callable[[str], None], **json_schema: Any) -> Check:
    """Text that is no template, and that ``check`` raises no ``ValueError`` for."""

    def validate(value: str) -> str:
        if "{{" in value:
            raise fault(
                "no template can stand here: {{ … }} works in command, env, and url and content of inputs", BAD_TEMPLATE
            )
        try:
            check(value)
        except ValueError as error:
            raise fault(str(error)) from None
        return value

    return Check(validate, {"not": {"pattern": r"\{\{"}, **json_schema})


def printable(most: int) -> Check:
    """Text of at most so many characters, none of them a control character."""

    def check(value: str) -> None:
        if len(value) > most:
            raise ValueError(f"is longer than {most} characters")
        if not value.isprintable():
            raise ValueError("has a character that cannot be printed")

    return checked(check, maxLength=most)


def at_most(count: int) -> Check:
    """Refuse a long list or mapping before each of its items is looked at."""

    def check(value: object) -> object:
        if isinstance(value, (list, Mapping)) and len(value) > count:
            raise fault(f"has {len(value)} entries, and {count} is the most")
        return value

    return Check(check, {"maxEntries": count}, before=True)


def quoting_hint(value: object) -> str:
    """What to do about a value that is no text, but reads like it in YAML."""
    plain = isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return ": put it in quotes" if plain else ""


def _parsed(parse: Callable[[Any], T], value: object) -> T:
    try:
        return parse(value)
    except ValueError as error:
        raise fault(str(error)) from None


def _between(value: T, least: Any, most: Any, write: Callable[[Any], str]) -> T:
    if not least <= value <= most:
        raise fault(f"must be between {write(least)} and {write(most)}")
    return value

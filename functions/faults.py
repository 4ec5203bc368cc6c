"""What pydantic finds wrong with a manifest, as pointers and plain words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from functions.documents import ERRORS, pointer, shown
from functions.errors import FieldError, Invalid
from functions.fields import INVALID, quoting_hint

_WORDS = {
    "missing": "is required",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entries",
}
_LONGEST_KEY = 200


@dataclass(frozen=True, slots=True)
class Fault:
    pointer: str
    message: str
    code: str = INVALID


def of_pydantic(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Its faults in the order of ``model``."""
    details = error.errors(include_url=False)
    # Looking for what was meant takes its time: not for thousands that nobody is told of.
    return [_fault(one, model if index < ERRORS else None) for index, one in enumerate(details)]


def raise_all(faults: Sequence[Fault]) -> None:
    """Raise ``Invalid`` with the first faults, if there are any; its code is theirs when they have one in common."""
    if not faults:
        return
    codes = {fault.code for fault in faults}
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise Invalid(
        f"{first.pointer}: {first.message}{more}" if first.pointer else f"{first.message}{more}",
        code=codes.pop() if len(codes) == 1 else INVALID,
        errors=[FieldError(fault.pointer, fault.message) for fault in faults[:ERRORS]],
    )


def _fault(detail: ErrorDetails, model: type[BaseModel] | None) -> Fault:
    kind, context = detail["type"], detail.get("ctx") or {}
    place = pointer(*(part[:_LONGEST_KEY] if isinstance(part, str) else part for part in detail["loc"]))
    if "at" in context:
        return Fault(place + str(context["at"]), str(context["message"]), kind)
    if kind == "extra_forbidden":
        return Fault(place, _unknown(detail["loc"], model))
    words = _WORDS.get(kind)
    message = words.format_map(context) if words is not None else detail["msg"]
    return Fault(place, message + (quoting_hint(detail["input"]) if kind == "string_type" else ""))


def _unknown(path: Sequence[str | int], model: type[BaseModel] | None) -> str:
    near = [] if model is None else get_close_matches(str(path[-1])[:50], _keys_at(path[:-1], model), n=1)
    return f"there is no such key: did you mean {shown(near[0])}?" if near else "there is no such key"


def _keys_at(path: Iterable[str | int], model: type[BaseModel]) -> list[str]:
    """The keys that the mapping at ``path`` may have."""
    here: type[BaseModel] | None = model
    for part in path:
        if here is None:
            return []
        if isinstance(part, str):
            found = next((info for name, info in here.model_fields.items() if (info.alias or name) == part), None)
            here = None if found is None else _model_in(found.annotation)
    return [] if here is None else [info.alias or name for name, info in here.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)

"""Params with templates in their texts, filled in by what happened: a job's end, a request, a planned time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from functions import expressions
from functions.documents import pointer, strings
from functions.expressions import BadTemplate, Budget, Roots
from functions.fields import BAD_TEMPLATE, fault

PARAMS_SIZE = 1024 * 1024
"""Characters of texts that are filled in, as much as an invoke may have bytes."""


def check_templates(params: dict[str, Any], roots: Roots) -> dict[str, Any]:
    """The params as they stand; raises a pydantic error at the first text with a look-up that can never work."""
    for path, text in strings(params):
        try:
            expressions.parse(text, roots)
        except BadTemplate as error:
            raise fault(str(error), BAD_TEMPLATE, at=pointer(*path)) from None
    return params


def fill_in(params: Mapping[str, Any], values: Mapping[str, Any], roots: Roots) -> dict[str, Any]:
    """The params of a job; raises ``MissingValue``. A text that is one look-up keeps the value's type."""
    budget = Budget(PARAMS_SIZE)
    return {key: filled(item, values, roots, budget) for key, item in params.items()}


def filled(value: Any, values: Mapping[str, Any], roots: Roots, budget: Budget) -> Any:
    """One value of params, filled in."""
    if isinstance(value, str):
        template = expressions.parse(value, roots)
        if template.lookup is not None:
            found = expressions.find(template.lookup, values)
            if found is not None:
                expressions.text_of(template, values, budget)  # counted only
            return found
        return expressions.text_of(template, values, budget)
    if isinstance(value, Mapping):
        return {key: filled(item, values, roots, budget) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, values, roots, budget) for item in value]
    return value

"""Params that come as text become what the schema says of them."""

from __future__ import annotations

from typing import Any

import pytest

from functions.param_text import from_text
from functions.params import ParamsSchema

SCHEMA = ParamsSchema(
    {
        "type": "object",
        "$defs": {"size": {"type": "integer"}},
        "properties": {
            "text": {"type": "string"},
            "whole": {"type": "integer"},
            "number": {"type": "number"},
            "yes": {"type": "boolean"},
            "either": {"type": ["integer", "string"]},
            "maybe": {"type": ["integer", "null"]},
            "list": {"type": "array"},
            "object": {"type": "object"},
            "any": True,
            "referred": {"$ref": "#/$defs/size"},
        },
        "allOf": [{"properties": {"behind": {"type": "boolean"}}}],
    }
)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "3", "3"), ("text", "true", "true"), ("text", "", ""),
        ("whole", "3", 3), ("whole", "-3", -3), ("whole", "0", 0), ("whole", "03", "03"), ("whole", "3.0", "3.0"),
        ("whole", "+3", "+3"), ("whole", " 3", " 3"), ("whole", "1_000", "1_000"), ("whole", "", ""), ("whole", "3\n", "3\n"),
        ("whole", "٣", "٣"), ("whole", "9" * 19, "9" * 19), ("whole", "true", "true"),
        ("number", "3", 3), ("number", "1.5", 1.5), ("number", "-1e3", -1000.0), ("number", "1e999", "1e999"),
        ("number", "NaN", "NaN"), ("number", "inf", "inf"), ("number", ".5", ".5"), ("number", "1.", "1."),
        ("yes", "true", True), ("yes", "false", False), ("yes", "True", "True"), ("yes", "1", "1"),
        ("either", "3", "3"), ("maybe", "3", 3), ("maybe", "null", None), ("maybe", "", None),
        ("list", "[1, 2]", [1, 2]), ("list", "[1", "[1"), ("list", "1", "1"), ("object", '{"a": 1}', {"a": 1}),
        ("object", '{"a": 1, "a": 2}', '{"a": 1, "a": 2}'), ("list", "[" * 100_000, "[" * 100_000),
        ("any", "3", "3"), ("other", "3", "3"), ("referred", "3", 3), ("behind", "true", True),
    ],
)  # fmt: skip
def test_a_text_is_what_its_param_may_be(name: str, text: str, value: Any) -> None:
    found = from_text(text, SCHEMA.types_of(name))
    assert (type(found), found) == (type(value), value)


def test_without_a_schema_everything_is_text() -> None:
    assert from_text("3", ParamsSchema(None).types_of("x")) == "3"

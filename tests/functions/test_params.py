from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.errors import Invalid
from functions.params import MOST_CHECKS, MOST_VALUES, ParamsSchema
from functions.schema_cost import MOST_CHECKS_PER_VALUE, checks_per_value, patterns_per_value
from functions.schema_errors import explain
from functions.schema_outline import DIALECT, MOST_PATTERNS, MOST_SUBSCHEMAS, Outline

NODE = {"$ref": "#/$defs/node"}


def recursive(node: dict[str, Any]) -> dict[str, Any]:
    """A schema whose values are nodes; ``NODE`` refers to one."""
    return {**NODE, "$defs": {"node": node}}


THUMBNAIL = {
    "type": "object",
    "required": ["video"],
    "additionalProperties": False,
    "properties": {
        "video": {"type": "string", "format": "uri"},
        "width": {"type": "integer", "default": 320, "minimum": 16, "maximum": 4096},
        "mode": {"enum": ["fast", "good"], "default": "good"},
        "crop": {"type": "object", "properties": {"x": {"type": "integer", "default": 0}, "y": {"default": 1}}},
        "tags": {"type": "array", "items": {"type": "object", "properties": {"lang": {"default": "en"}}}},
        "when": {"type": "string", "format": "date-time"},
    },
}


def doubling(depth: int) -> dict[str, Any]:
    """Each level asks the next one twice: 2 ** depth checks."""
    levels: dict[str, Any] = {f"n{level}": {"anyOf": [{"$ref": f"#/$defs/n{level + 1}"}] * 2} for level in range(depth)}
    return {"properties": {"a": {"$ref": "#/$defs/n0"}}, "$defs": levels | {f"n{depth}": {"type": "string"}}}


def errors_of(schema: dict[str, Any], params: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        ParamsSchema(schema).complete(params)
    assert caught.value.code == "params_invalid"
    return [(error.pointer, error.message) for error in caught.value.errors]


def test_without_a_schema_any_params_are_taken() -> None:
    assert ParamsSchema(None).complete({"a": [None, {"b": 1.5}]}) == {"a": [None, {"b": 1.5}]}
    assert ParamsSchema(None).faults() == []
    assert ParamsSchema(None).may_have(("a", "b"))


def test_defaults_are_filled_in() -> None:
    schema = ParamsSchema(THUMBNAIL)
    assert schema.faults() == []
    assert schema.complete({"video": "https://x.example/a"}) == {
        "video": "https://x.example/a",
        "width": 320,
        "mode": "good",
    }
    given = {"video": "artifact:art_1", "width": 16, "crop": {"x": 5}, "tags": [{}, {"lang": "de"}, {"a": 1}]}
    before = copy.deepcopy(given)
    assert schema.complete(given) == {
        "video": "artifact:art_1",
        "width": 16,
        "mode": "good",
        "crop": {"x": 5, "y": 1},
        "tags": [{"lang": "en"}, {"lang": "de"}, {"a": 1, "lang": "en"}],
    }
    assert given == before


def test_defaults_behind_references_and_allof_are_filled_in_and_those_of_branches_are_not() -> None:
    schema = ParamsSchema(
        {
            "$defs": {"size": {"type": "integer", "default": 7}, "deep": {"properties": {"n": {"default": None}}}},
            "properties": {"a": {"$ref": "#/$defs/size"}, "b": {"$ref": "#/$defs/deep"}},
            "allOf": [{"properties": {"c": {"allOf": [{"$ref": "#/$defs/size"}]}}}],
            "anyOf": [{"properties": {"d": {"default": 1}}}],
            "if": {"properties": {"e": {"default": 1}}},
            "additionalProperties": {"properties": {"f": {"default": 2}}},
        }
    )
    assert schema.faults() == []
    assert schema.complete({"b": {}, "z": {}}) == {"a": 7, "b": {"n": None}, "c": 7, "z": {"f": 2}}


def test_each_params_get_a_default_of_their_own() -> None:
    schema = ParamsSchema({"properties": {"list": {"default": [1]}}})
    first = schema.complete({})
    first["list"].append(2)
    assert schema.complete({}) == {"list": [1]}


def test_a_recursive_default_is_filled_in_once() -> None:
    schema = ParamsSchema(
        {"$ref": "#/$defs/node", "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node", "default": {}}}}}}
    )
    assert schema.faults() == []
    assert schema.complete({}) == {"next": {}}


@pytest.mark.parametrize(
    ("params", "errors"),
    [
        ({}, [("/video", "is required")]),
        ({"video": 1}, [("/video", 'the value is not of type "string"')]),
        ({"video": "x y"}, [("/video", 'the value is not a "uri"')]),
        ({"video": "a:b", "width": 15}, [("/width", "the value is less than the minimum of 16")]),
        ({"video": "a:b", "width": True}, [("/width", 'the value is not of type "integer"')]),
        ({"video": "a:b", "width": "320"}, [("/width", 'the value is not of type "integer"')]),
        ({"video": "a:b", "width": 320.5}, [("/width", 'the value is not of type "integer"')]),
        ({"video": "a:b", "width": 2**63}, [("/width", "the value is greater than the maximum of 4096")]),
        ({"video": "a:b", "mode": "best"}, [("/mode", 'the value is not one of "fast" or "good"')]),
        ({"video": "a:b", "when": "2024-02-30T00:00:00Z"}, [("/when", 'the value is not a "date-time"')]),
        ({"video": "a:b", "crop": {"x": "1"}}, [("/crop/x", 'the value is not of type "integer"')]),
        ({"video": "a:b", "tags": [{}, 3]}, [("/tags/1", 'the value is not of type "object"')]),
        ({"video": "a:b", "a/b": 1, "c": 2}, [("/a~1b", "there is no such param"), ("/c", "there is no such param")]),
        ({"video": None, "width": None, "x": 1}, [
            ("/x", "there is no such param"),
            ("/video", 'the value is not of type "string"'),
            ("/width", 'the value is not of type "integer"'),
        ]),
    ],
)  # fmt: skip
def test_params_that_do_not_fit_are_refused_with_pointers(
    params: dict[str, Any], errors: list[tuple[str, str]]
) -> None:
    assert sorted(errors_of(THUMBNAIL, params)) == sorted(errors)


def test_whole_numbers_written_as_floats_are_integers() -> None:
    assert ParamsSchema(THUMBNAIL).complete({"video": "a:b", "width": 320.0})["width"] == 320


def test_no_error_repeats_what_the_user_sent() -> None:
    secret = "s3cr3t-value"
    for message in (message for _, message in errors_of(THUMBNAIL, {"video": "a:b", "mode": secret, "crop": secret})):
        assert secret not in message


def test_at_most_twenty_errors_are_told() -> None:
    assert (
        len(errors_of({"properties": {str(n): {"type": "string"} for n in range(30)}}, {str(n): n for n in range(30)}))
        == 20
    )


@pytest.mark.parametrize(
    ("schema", "at", "words"),
    [
        ({"type": "strin"}, "/type", "anyOf"),
        ({"type": "array"}, "/type", "object"),
        ({"properties": {"a": 3}}, "/properties/a", "must be a schema"),
        ({"properties": []}, "/properties", "object"),
        ({"patternProperties": 5}, "/patternProperties", "object"),
        ({"required": "a"}, "/required", "array"),
        ({"properties": {"a": {"minimum": "x"}}}, "/properties/a/minimum", "number"),
        ({"properties": {"a": {"enum": 1}}}, "/properties/a/enum", "array"),
        ({"allOf": []}, "/allOf", "item"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema", "2020-12"),
        ({"$schema": 4}, "/$schema", "2020-12"),
        ({"properties": {"a": {"$id": "x"}}}, "/properties/a/$id", "whole schema"),
        ({"$dynamicRef": "#x"}, "/$dynamicRef", "not supported"),
        ({"$ref": "https://example.com/schema"}, "/$ref", "nothing is fetched"),
        ({"$ref": "file:///etc/passwd"}, "/$ref", "nothing is fetched"),
        ({"$ref": "other.json"}, "/$ref", "nothing is fetched"),
        ({"$ref": DIALECT}, "/$ref", "nothing is fetched"),
        ({"$ref": "#anchor"}, "/$ref", "nothing is fetched"),
        ({"$ref": "#/$defs/a"}, "/$ref", "no schema at"),
        ({"$ref": "#/required/0", "required": ["a"]}, "/$ref", "no schema at"),
        ({"$ref": 3}, "/$ref", "string"),
        ({"$ref": "#"}, "", "refers to itself"),
        (recursive({"anyOf": [{"not": NODE}]}), None, "refers to itself"),
        ({"properties": {"a": {"pattern": "("}}}, "/properties/a/pattern", "regex|look-around"),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, "/properties/a/pattern", "look-around"),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, "/properties/a/pattern", "back references"),
        ({"patternProperties": {"(?!x)": {}}}, "/patternProperties/(?!x)", "look-around"),
        ({"properties": {"a": {"pattern": r"\p{L}{1000}"}}}, "/properties/a/pattern", "bounded size"),
        ({"allOf": [{"pattern": r"[^\s@]{200}"}] * 3}, "/allOf/2/pattern", "bounded size"),
        ({"properties": {"a": {"pattern": "a" * 1001}}}, "/properties/a", "1000 characters"),
        ({"properties": {"a": {"type": "integer", "default": "1"}}}, "/properties/a/default", "its own schema"),
        ({"$defs": {"a": {"minimum": 3, "default": 1}}}, "/$defs/a/default", "its own schema"),
        ({"properties": {str(n): {} for n in range(MOST_SUBSCHEMAS)}}, "", "subschemas"),
        ({"enum": list(range(5001))}, "", "values"),
        ({"properties": {str(n): {"pattern": str(n)} for n in range(MOST_PATTERNS + 1)}}, "", "patterns"),
        (doubling(20), "", "branches"),
    ],
)  # fmt: skip
def test_a_bad_schema_is_refused_with_a_pointer(schema: dict[str, Any], at: str | None, words: str) -> None:
    faults = ParamsSchema(schema).faults()
    assert len(faults) >= 1
    if at is not None:
        assert at in [fault.pointer for fault in faults]
    assert re.search(words, " ".join(fault.message for fault in faults))


def test_several_faults_of_a_schema_are_told_together() -> None:
    schema = {"required": 1, "properties": {"a": {"type": 1}, "b": 3, "c": {"$ref": "x"}}}
    pointers = {fault.pointer for fault in ParamsSchema(schema).faults()}
    assert pointers == {"/required", "/properties/a/type", "/properties/b", "/properties/c/$ref"}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$schema": DIALECT, "$id": "urn:x", "not": {"$ref": "#/$defs/a%20b~1c%25"}, "$defs": {"a b/c%": False}},
        {"properties": {"$ref": {"type": "string"}, "default": {"type": "string"}, "properties": {}}},
        {"properties": {"a": {"pattern": r"^[\p{L} ]{1,10}$"}, "b": {"format": "unheard-of"}}},
        {"properties": {"a": True, "b": False}, "unevaluatedProperties": False},
        recursive({"properties": {"left": NODE, "right": NODE, "all": {"items": NODE}}}),
        {"anyOf": [{"properties": {"kind": {"const": n}, "value": {"type": "string"}}} for n in range(20)]},
        doubling(6),
    ],
)  # fmt: skip
def test_a_good_schema_has_no_faults(schema: dict[str, Any]) -> None:
    assert ParamsSchema(schema).faults() == []
    ParamsSchema(schema).complete({})


@pytest.mark.parametrize(
    ("schema", "checks"),
    [
        ({}, 1),
        ({"properties": {str(n): {} for n in range(400)}}, 101),
        ({"items": {"anyOf": [{}, {}]}}, 3),
        # A value of a tree is looked at twice, by the node and by the reference to it, wherever it stands.
        (recursive({"properties": {"l": NODE, "r": NODE}}), 2),
        (doubling(3), 30),
    ],
)  # fmt: skip
def test_the_checks_of_one_value_are_counted(schema: dict[str, Any], checks: int) -> None:
    assert checks_per_value(Outline(schema)) == checks


@pytest.mark.parametrize(
    "schema",
    [
        doubling(60),
        recursive({"properties": {"c": {"anyOf": [NODE, NODE]}}}),
        recursive({"properties": {"c": NODE}, "patternProperties": {"^c": NODE}}),
        recursive({"items": NODE, "contains": NODE}),
        recursive({"items": {"allOf": [NODE, {"not": NODE}]}}),
        recursive({"properties": {"c": NODE}, "unevaluatedProperties": NODE}),
    ],
)  # fmt: skip
def test_a_schema_that_doubles_at_each_level_is_refused(schema: dict[str, Any]) -> None:
    assert checks_per_value(Outline(schema)) > MOST_CHECKS_PER_VALUE
    assert ParamsSchema(schema).faults() != []


def test_params_with_more_values_than_may_be_checked_are_refused() -> None:
    schema = {"properties": {"a": {"items": {"anyOf": [{"type": "string"}] * 100}}}}
    most = MOST_CHECKS // checks_per_value(Outline(schema))
    assert ParamsSchema(schema).complete({"a": ["x"] * (most - 2)})
    [(at, message)] = errors_of(schema, {"a": ["x"] * most})
    assert (at, "too many" in message) == ("", True)
    assert "too many" in errors_of({}, {"a": [0] * MOST_VALUES})[0][1]


def test_params_with_more_text_than_may_be_matched_are_refused() -> None:
    twice = {"properties": {"a": {"allOf": [{"pattern": "x"}, {"pattern": "y*"}]}}}
    assert patterns_per_value(Outline(twice)) == 2
    assert ParamsSchema(twice).complete({"a": "x" * 499_000})
    assert "too much text" in errors_of(twice, {"a": "x" * 500_001})[0][1]
    assert ParamsSchema({"properties": {"a": {"type": "string"}}}).complete({"a": "x" * 2_000_000})


def test_defaults_that_would_make_params_huge_are_refused() -> None:
    schema = {"properties": {"a": {"items": {"properties": {"b": {"default": "x" * 10_000}}}}}}
    assert ParamsSchema(schema).faults() == []
    assert "larger than" in errors_of(schema, {"a": [{}] * 1000})[0][1]
    small = {"properties": {"a": {"items": {"properties": {"b": {"default": 1}}}}}}
    assert "too many values to fill" in errors_of(small, {"a": [{}] * 50_000})[0][1]


class _Counting:
    """How many values are handed to the slow part of the library, with how often each is looked at."""

    def __init__(self, schema: ParamsSchema) -> None:
        self.schema, self.asked = schema, 0

    def __call__(self, path: tuple[str, ...]) -> Any:
        self.asked += 1
        return self.schema._at(path)


@pytest.mark.parametrize(
    ("schema", "params", "at"),
    [
        ({"properties": {"a": {"items": {"type": "integer"}}}}, {"a": [1] * 20_000 + ["x"] * 20_000}, "/a/20000"),
        ({"propertyNames": {"pattern": "^x"}}, {f"a{n}": 1 for n in range(10_000)}, ""),
        ({"anyOf": [{"properties": {"a": {"items": {"type": "integer"}}}}] * 50}, {"a": ["x"] * 10_000}, ""),
        ({"properties": {"a": {"items": {"properties": {"b": {"minimum": 1}}}}}}, {"a": [{"b": 0}] * 30_000}, "/a/0/b"),
        ({"properties": {"a": {"maxLength": 3}}}, {"a": "x" * 1_000_000}, "/a"),
        ({"required": [str(n) for n in range(1000)], "properties": {"a": True}}, {"a": [0] * 10_000}, ""),
    ],
)
def test_why_large_params_are_refused_is_found_in_a_bounded_number_of_steps(
    schema: dict[str, Any], params: dict[str, Any], at: str
) -> None:
    read = ParamsSchema(schema)
    counting = _Counting(read)
    errors = explain(Outline(schema), counting, checks_per_value(Outline(schema)), params)
    assert 1 <= len(errors) <= 20
    assert errors[0].pointer == at
    assert counting.asked <= 5


@pytest.mark.parametrize(
    ("path", "possible"),
    [
        ((), True),
        (("video",), True),
        (("widht",), False),
        (("crop", "x"), True),
        (("crop", "z"), True),
        (("video", "x"), True),
    ],
)
def test_a_path_that_the_schema_never_lets_through_is_known(path: tuple[str, ...], possible: bool) -> None:
    assert ParamsSchema(THUMBNAIL).may_have(path) is possible


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYWORDS = st.sampled_from(
    [
        "type", "properties", "items", "allOf", "anyOf", "$ref", "$defs", "pattern", "default", "required", "format",
        "additionalProperties", "not", "if", "enum", "const", "prefixItems", "unevaluatedProperties", "$id", "minimum",
    ]
)  # fmt: skip
LEAVES = st.sampled_from(["#", "#/$defs/a", "string", "object", "^a", "uri", 1, 1.5, True, False, None, [], {}, ["a"]])
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(KEYWORDS | st.just("a"), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
).filter(lambda schema: isinstance(schema, dict))


@given(SCHEMAS, st.dictionaries(st.sampled_from(["a", "type", "b"]), JSON, max_size=3))
def test_any_schema_has_faults_or_takes_or_refuses_any_params(schema: dict[str, Any], params: dict[str, Any]) -> None:
    read = ParamsSchema(schema)
    if read.faults():
        return
    try:
        completed = read.complete(params)
    except Invalid as error:
        assert error.errors
    else:
        assert completed.items() >= {k: completed[k] for k in params}.items()
        assert read.complete(completed) == completed

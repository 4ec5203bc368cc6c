"""The JSON Schema that editors use says no less than can be said, and nothing that the gateway does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from functions.documents import load_yaml
from functions.manifest import parse_manifest
from functions.manifest_schema import manifest_schema
from tests.functions.manifests import POLICY, SMALL, changed
from tests.functions.test_manifest import BAD, MISSING, PRODUCT, without

SAYABLE = (
    "is required", "no such key", "a mapping", "must be a list", "must be text", "has no value", "no template",
    "whole number", "a number", "true or false", "at least", "at most", "write 30s", "with its unit", "500m", "512Mi",
    "lower-case", "letters", "no label", "name of a variable", "content type", "error, timeout, oom",
)  # fmt: skip
"""Messages about what a JSON Schema can say, too."""
BUT = {"spec.params", "spec.job.image"}
"""Checked by more than a schema's words."""


@pytest.fixture(scope="module")
def schema() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(manifest_schema())


def test_it_is_a_schema_itself() -> None:
    jsonschema_rs.Draft202012Validator(
        {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    ).validate(manifest_schema())


@pytest.mark.parametrize("template", sorted(Path("templates/functions").glob("*/function.yaml")), ids=str)
def test_the_templates_fit(schema: jsonschema_rs.Draft202012Validator, template: Path) -> None:
    schema.validate(load_yaml(template.read_bytes()))


@pytest.mark.parametrize("data", [PRODUCT, json.dumps(SMALL).encode()])
def test_what_the_gateway_takes_fits_and_so_does_what_it_makes_of_it(
    schema: jsonschema_rs.Draft202012Validator, data: bytes
) -> None:
    schema.validate(load_yaml(data))
    schema.validate(parse_manifest(data, yaml=True, policy=POLICY).normalised())


def test_what_is_bad_does_not_fit_as_far_as_a_schema_can_tell(schema: jsonschema_rs.Draft202012Validator) -> None:
    told = 0
    for path, value, _, words in BAD:
        # For a schema, 1.0 is a whole number.
        if path in BUT or value == 1.0 or not any(one in words for one in SAYABLE):
            continue
        told += 1
        document = without(path) if value is MISSING else changed(path, value)
        assert not schema.is_valid(document), (path, value)
    assert told > 80


def test_defaults_are_written_as_users_write_them() -> None:
    defined: dict[str, Any] = manifest_schema()["$defs"]
    assert defined["JobSpec"]["properties"]["timeout"]["default"] == "10m"
    assert defined["Resources"]["properties"]["memory"]["default"] == "1Gi"

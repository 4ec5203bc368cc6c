"""The manifest as a JSON Schema for editors, made from the models that read manifests.

It says less than they do: bounds of durations, addresses, what must not stand twice and what look-ups may find are
checked at apply only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import SchemaSerializer, core_schema

from functions.grammar import Manifest

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@cache
def manifest_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of ``function.yaml``."""
    schema = Manifest.model_json_schema(schema_generator=_Generator)
    schema["$defs"]["Spec"]["properties"]["params"] = {
        "$ref": DIALECT,
        "type": "object",
        "description": "JSON Schema 2020-12 of the params; defaults are filled in.",
    }
    for part in schema["$defs"].values():
        if "description" in part:
            part["description"] = part["description"].replace("``", "`")
    return {"$schema": DIALECT, **schema, "title": "RGrid function"}


class _Generator(GenerateJsonSchema):
    """Null stands for nothing in a manifest, and defaults are written as users write them."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = self.generate_inner(schema["schema"])
        default = schema.get("default")
        if default is None or "$ref" in described:
            return described
        written = SchemaSerializer(schema["schema"]).to_python(default, mode="json", by_alias=True, exclude_none=True)
        return {**described, "default": written}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

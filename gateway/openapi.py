"""The route table as an OpenAPI 3.1 document, made from the rows and models that the requests meet, too."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway import problems
from gateway.body import JSON
from gateway.problems import Problem
from gateway.routes import Answer, Route, Scope

Json = dict[str, Any]
Mode = Literal["validation", "serialization"]

REFERENCE = "#/components/schemas/{model}"
INTRODUCTION = (
    "Failures are RFC 9457 problem documents; `code` is stable. Lists are newest first and go on with "
    "`cursor`. Times are RFC 3339 in UTC."
)
SEGMENT = r"^[0-9A-Za-z._~-]+$"


class OpenApi:
    """The document of one route table, made on first use."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes

    @cached_property
    def encoded(self) -> bytes:
        return json.dumps(self.document, separators=(",", ":")).encode()

    @cached_property
    def document(self) -> Json:
        """Raises ``ValueError`` when two routes would have one operation id."""
        schemas = _Schemas(self._routes)
        paths: dict[str, Json] = {}
        seen: set[str] = set()
        for route in self._routes:
            operation = _operation(route, schemas)
            if operation["operationId"] in seen:
                raise ValueError(f"{route.method} {route.path}: its handler serves another route, too")
            seen.add(operation["operationId"])
            paths.setdefault(route.path, {})[route.method.lower()] = operation
        return {
            "openapi": "3.1.0",
            "info": {"title": "RGrid", "version": version("rgrid"), "description": INTRODUCTION},
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {
                "schemas": schemas.components(),
                "responses": _problem_responses(schemas),
                "securitySchemes": {
                    "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key of a project."},
                    "nodeCredential": {"type": "http", "scheme": "bearer", "description": "A node's own."},
                },
            },
        }


class _Schemas:
    """The schemas of all models. Those of queries and headers are taken apart into parameters."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._apart = {model for route in routes for model in (route.query, route.headers) if model}
        wanted: dict[tuple[type[BaseModel], Mode], None] = {(Problem, "serialization"): None}
        for route in routes:
            for model in (route.body, route.query, route.headers):
                if model is not None and not isinstance(model, tuple):
                    wanted[model, "validation"] = None
            for answer in _answers(route):
                if answer is not None and not isinstance(answer, str):
                    wanted[answer, "serialization"] = None
        self._where, everything = models_json_schema(list(wanted), ref_template=REFERENCE)
        self._defined: Json = everything.get("$defs", {})

    def reference(self, model: type[BaseModel], mode: Mode) -> Json:
        return dict(self._where[model, mode])

    def resolve(self, model: type[BaseModel], mode: Mode) -> Json:
        schema = self._where[model, mode]
        found: Json = self._defined.get(_name(schema), schema)
        return found

    def components(self) -> Json:
        hidden = {_name(self._where[model, "validation"]) for model in self._apart}
        return {name: schema for name, schema in self._defined.items() if name not in hidden}


def _name(schema: Json) -> str:
    reference: str = schema.get("$ref", "")
    return reference.rpartition("/")[2]


def _answers(route: Route) -> Iterator[Answer]:
    for answer in route.answers.values():
        if isinstance(answer, tuple):
            yield from answer
        else:
            yield answer


def _operation(route: Route, schemas: _Schemas) -> Json:
    module = route.handler.__module__.rsplit(".", 1)[-1]
    operation: Json = {
        "operationId": f"{module}_{route.handler.__name__}",
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": list(_parameters(route, schemas)),
        "responses": _responses(route, schemas),
        "security": _security(route),
    }
    if text := inspect.getdoc(route.handler):
        operation["description"] = re.sub(r"^[A-Z]+ /\S*: ", "", text)
    if route.body is not None:
        content = _request_content(route, schemas)
        operation["requestBody"] = {"required": route.body_required, "content": content}
    return operation


def _security(route: Route) -> list[Json]:
    if route.scope is None:
        return []
    return [{"nodeCredential": []}] if route.scope is Scope.NODE else [{"apiKey": [str(route.scope)]}]


def _parameters(route: Route, schemas: _Schemas) -> Iterator[Json]:
    for name in route.path_parameters:
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": SEGMENT}}
    for place, model in (("query", route.query), ("header", route.headers)):
        if model is None:
            continue
        schema = schemas.resolve(model, "validation")
        for name, described in schema.get("properties", {}).items():
            parameter: Json = {"name": name, "in": place, "required": name in schema.get("required", ())}
            if "description" in described:
                parameter["description"] = described["description"]
            yield parameter | {"schema": _without_null(described)}


def _without_null(schema: Json) -> Json:
    """A parameter is absent rather than null."""
    kept = {key: value for key, value in schema.items() if key not in ("title", "description")}
    if kept.get("default", 0) is None:
        del kept["default"]
    choices = [choice for choice in kept.pop("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        only: Json = choices[0]
        return only | kept
    return kept | {"anyOf": choices} if choices else kept


def _request_content(route: Route, schemas: _Schemas) -> Json:
    if isinstance(route.body, tuple):
        return {media_type: {"schema": _any_of(media_type)} for media_type in route.body}
    assert route.body is not None
    return {JSON: {"schema": schemas.reference(route.body, "validation")}}


def _any_of(media_type: str) -> Json:
    if media_type == "multipart/form-data":
        return {"type": "object"}
    return {} if media_type in (JSON, "*/*") or media_type.endswith("octet-stream") else {"type": "string"}


def _responses(route: Route, schemas: _Schemas) -> Json:
    responses: Json = {}
    for status, answer in route.answers.items():
        content: Json = {}
        models: list[Json] = []
        for form in answer if isinstance(answer, tuple) else (answer,):
            if form is Problem:
                content[problems.MEDIA_TYPE] = {"schema": schemas.reference(Problem, "serialization")}
            elif isinstance(form, str):
                content[form] = {"schema": _any_of(form)}
            elif form is not None:
                models.append(schemas.reference(form, "serialization"))
        if models:
            content[JSON] = {"schema": models[0] if len(models) == 1 else {"anyOf": models}}
        response: Json = {"description": HTTPStatus(status).phrase}
        responses[str(status)] = response | ({"content": content} if content else {})
    for status in problems.possible(
        key=route.scope is not None, body=route.body is not None, changes=route.method != "GET"
    ):
        responses.setdefault(str(int(status)), {"$ref": f"#/components/responses/Problem{int(status)}"})
    return responses


def _problem_responses(schemas: _Schemas) -> Json:
    content = {problems.MEDIA_TYPE: {"schema": schemas.reference(Problem, "serialization")}}
    return {
        f"Problem{int(status)}": {"description": status.phrase, "content": content}
        for status in sorted({*problems.STATUSES.values(), HTTPStatus.INTERNAL_SERVER_ERROR})
    }

"""Writes docs/reference/http.md from the route table: ``.venv/bin/python scripts/http_reference.py``.

A test holds the page current.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from gateway.api.table import ROUTES
from gateway.auth import Scope
from gateway.openapi import OpenApi
from gateway.routes import Route

PAGE = Path(__file__).parent.parent / "docs/reference/http.md"

HEAD = """\
# HTTP API

JSON in UTF-8. `GET /openapi.json` has the same as an OpenAPI 3.1 document, with every schema; the router, that document
and this page are made from one table, so they cannot differ. This page is written by `scripts/http_reference.py`.

**Authentication.** `Authorization: Bearer <API key>`. A key has scopes: `read`, `invoke`, `write` (which includes both)
and `admin` (which includes all). What belongs to another project answers 404.

**Failures** are RFC 9457 problem documents (`application/problem+json`) with a stable `code`:
[all of them](problems.md). `instance` is the request's id, which is also in the header `RGrid-Request-Id`.

**Lists** are newest first: `{"data": [...], "next_cursor": "..."}`. Ask for the next page with `?cursor=`; it is `null`
on the last one. **Times** are RFC 3339 in UTC, ids opaque.

**Asking again is safe** for GET, PUT, DELETE and cancel. For an invoke it is safe with an `Idempotency-Key`: the same
key with the same body within 24 hours is the same job, answered with `Idempotent-Replayed: true`.

"""


def page() -> str:
    document = OpenApi(ROUTES).document
    text = HEAD + "| call | scope | does |\n| --- | --- | --- |\n"
    text += "".join(f"| `{route.method} {route.path}` | {_scope(route)} | {route.summary} |\n" for route in _routes())
    for path, routes in groupby(_routes(), lambda route: route.path):
        for route in routes:
            operation = document["paths"][path][route.method.lower()]
            text += f"\n## {route.method} {path}\n\n" + "\n".join(_lines(route, operation)) + "\n"
    return text


def _routes() -> list[Route]:
    """Those of people; nodes have a protocol of their own (``nodes/protocol.py``)."""
    return [route for route in ROUTES if route.scope is not Scope.NODE and not route.path.startswith("/node/")]


def _scope(route: Route) -> str:
    return "" if route.scope is None else f"`{route.scope}`"


def _lines(route: Route, operation: dict[str, Any]) -> Iterator[str]:
    yield _sentence(operation.get("description") or route.summary)
    parameters = [found for found in operation["parameters"] if found["in"] != "path"]
    if parameters:
        yield ""
        yield "| parameter | in | type | meaning |"
        yield "| --- | --- | --- | --- |"
        for found in parameters:
            needed = ", required" if found["required"] else ""
            name, place = found["name"], found["in"]
            meaning = _cell(found.get("description", ""))
            yield f"| `{name}` | {place} | {_type(found['schema'])}{needed} | {meaning} |".replace("|  |", "| |")
    if "requestBody" in operation:
        yield ""
        kinds = ", ".join(f"`{kind}`{_named(content)}" for kind, content in operation["requestBody"]["content"].items())
        yield f"Body: {kinds}" + ("." if operation["requestBody"]["required"] else ", may be left out.")
    yield ""
    yield "Answers: " + "; ".join(_answer(status, answer) for status, answer in _good(operation)) + "."


def _good(operation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(status, answer) for status, answer in operation["responses"].items() if int(status) < 400]


def _answer(status: str, answer: dict[str, Any]) -> str:
    kinds = [f"`{kind}`{_named(content)}" for kind, content in answer.get("content", {}).items()]
    return f"**{status}**" + (f" {' or '.join(kinds)}" if kinds else "")


def _named(content: dict[str, Any]) -> str:
    """The schema's name in the OpenAPI document, if it has one."""
    schema = content.get("schema", {})
    references = [choice.get("$ref", "") for choice in schema.get("oneOf", schema.get("anyOf", [schema]))]
    names = [reference.rpartition("/")[2] for reference in references if reference]
    return f" {' or '.join(names)}" if names else ""


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return _cell(" or ".join(f"`{value}`" for value in schema["enum"]))
    kind = str(schema.get("type", "text"))
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    default = f", default `{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""
    return _cell(" ".join([kind, *bounds]) + default)


def _sentence(text: str) -> str:
    """With a capital letter at its beginning."""
    text = _plain(text)
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page())

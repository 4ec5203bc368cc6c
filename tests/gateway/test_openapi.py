"""The document, the router and the table of routes are one thing; and generated requests find no way around it."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.core.failures import FailureGroup

from functions.errors import CODES
from gateway.api.table import ROUTES
from gateway.app import Router
from gateway.openapi import OpenApi
from gateway.routes import Route, Scope, names
from gateway.services import Services
from tests.gateway.conftest import BOOTSTRAP_KEY, listening
from tests.gateway.making import OneOfEach, make_one_of_each

REQUESTS_EACH = 10
"""For one operation, of each kind: some 600 in all."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


DOCUMENT = OpenApi(ROUTES).document


async def test_the_document_has_every_route_and_no_other(shared_api: httpx.AsyncClient) -> None:
    document = (await shared_api.get("/openapi.json")).json()
    assert document == DOCUMENT
    described = {
        (method.upper(), path) for path, operations in document["paths"].items() for method in operations
    }
    assert described == {(route.method, route.path) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_an_operation_says_what_the_route_does(route: Route) -> None:
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    parameters = {(parameter["in"], parameter["name"]) for parameter in operation["parameters"]}
    expected = {("path", name) for name in route.path_parameters}
    for place, model in (("query", route.query), ("header", route.headers)):
        expected |= {(place, name) for name in names(model)} if model else set()
    assert parameters == expected
    assert {int(status) for status in operation["responses"] if int(status) < 400} == {
        status for status in route.answers if status < 400
    }
    assert ("requestBody" in operation) == (route.body is not None)
    assert bool(operation["security"]) == (route.scope is not None)
    assert operation["summary"] and operation["description"] and operation["tags"] == [route.tag]
    path = re.sub(r"\{\w+\}", "x", route.path)
    assert Router(ROUTES).find(route.method, path)[0] is route


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_who_may_call_is_written_at_every_route(route: Route) -> None:
    open_to_all = {"/healthz", "/readyz", "/openapi.json", "/schemas/function.json", "/r/{token}", "/node/v1/join",
                   "/callback-keys/{project}", "/hooks/{project}/{function}/{webhook}"}  # fmt: skip
    open_to_all |= {"/metrics", "/node/v1/agent", "/node/v1/agent/{sha256}", "/node/v1/trouble"}
    assert (route.scope is None) == (route.path in open_to_all)
    if route.path.startswith("/node/v1/") and route.scope is not None:
        assert route.scope is Scope.NODE
    elif route.method in ("PUT", "POST", "PATCH", "DELETE") and route.scope is not None:
        assert route.scope in (Scope.INVOKE, Scope.WRITE, Scope.ADMIN)
    elif route.scope is not None:
        assert route.scope in (Scope.READ, Scope.WRITE, Scope.ADMIN)


async def test_generated_requests_get_what_the_document_says(services: Services, api: httpx.AsyncClient) -> None:
    """Schemathesis, with the same requests every time: valid ones for things that exist, broken ones for any."""
    known = await make_one_of_each(services, api)
    async with listening(services) as gateway:
        faults = await asyncio.to_thread(_generated, f"http://127.0.0.1:{gateway.port}", known)
    assert not faults, "\n\n".join(faults[:50])


def _generated(url: str, known: OneOfEach) -> list[str]:
    """What was wrong; runs in a thread of its own."""
    faults: dict[str, str] = {}
    operations = [result.ok() for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
    # What takes things away comes last.
    for operation in sorted(operations, key=lambda one: one.method == "delete" or one.path.endswith("/leave")):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with suppress(Unsatisfiable):  # nothing can be broken where there are no parameters
                _ask(operation, mode, known, faults)
    return [f"{kind}\n{text}" for kind, text in faults.items()]


def _ask(operation: Any, mode: GenerationMode, known: OneOfEach, faults: dict[str, str]) -> None:
    key = known.node_credential if operation.path.startswith("/node/") else BOOTSTRAP_KEY

    @seed(20260101)
    @settings(
        max_examples=REQUESTS_EACH, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            case.path_parameters.update(known.of(operation.path))
        if isinstance(case.body, dict) and isinstance(case.body.get("wait_s"), int | float):
            case.body["wait_s"] = 0
        if operation.path.startswith("/f/") and "wait" not in (case.query or {}):
            case.query = {**(case.query or {}), "wait": "0"}
        response = case.call(headers={"Authorization": f"Bearer {key}"}, timeout=10)
        said = f"{response.status_code} {operation.label}"
        try:
            case.validate_response(response, checks=CHECKS)
        except (Exception, FailureGroup) as error:
            faults.setdefault(f"{said} {type(error).__name__}", str(error))
        if response.status_code >= 400 and response.json()["code"] not in CODES:
            faults.setdefault(f"{said} code", response.text)

    ask()

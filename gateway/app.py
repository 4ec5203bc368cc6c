"""The ASGI application: finds the route in the table, checks who calls, and runs the handler.

Which handler a path reaches is a matter of security, so the router is our own: it compares the path as it was
sent, and nothing is decoded, normalised or redirected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from functions.errors import AddressTooLong, Malformed, MethodNotAllowed, NotFound
from gateway.api.table import ROUTES
from gateway.auth import Scope, bearer, find_node
from gateway.keys import KEY_IN_URL
from gateway.middleware import Envelope
from gateway.openapi import OpenApi
from gateway.routes import Route, no_query
from gateway.services import Services

PATH_CAP_BYTES = 4096
PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[0-9A-Za-z._~-]+)+|/")
"""Names and ids need no escapes, so whatever has one, or an empty or dot segment, names nothing here."""


def create_app(services: Services, routes: Sequence[Route] = ROUTES) -> ASGIApp:
    return Envelope(Dispatcher(services, routes), services.requests)


@dataclass(slots=True)
class Place:
    """One position in the tree of paths."""

    literal: dict[str, Place] = field(default_factory=dict)
    parameter: Place | None = None
    routes: dict[str, Route] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        return sorted({*self.routes, "HEAD"} if "GET" in self.routes else self.routes)


class Router:
    """Raises ``ValueError`` for a table that says two things about one path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = Place()
        for route in routes:
            place = self._root
            for segment in route.segments:
                if segment.startswith("{"):
                    place.parameter = place.parameter or Place()
                    place = place.parameter
                else:
                    place = place.literal.setdefault(segment, Place())
            if route.method in place.routes:
                raise ValueError(f"{route.method} {route.path} stands twice in the route table")
            place.routes[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route and its path parameters; a name in the table goes before a parameter."""
        place, values = self._root, []
        for segment in path.strip("/").split("/"):
            if (found := place.literal.get(segment)) is None:
                if (found := place.parameter) is None:
                    raise NotFound("there is no such path")
                values.append(segment)
            place = found
        if not place.routes:
            raise NotFound("there is no such path")
        route = place.routes.get("GET" if method == "HEAD" else method)
        if route is None:
            raise MethodNotAllowed(f"{path} takes {', '.join(place.methods)}", allowed=place.methods)
        return route, dict(zip(route.path_parameters, values, strict=True))


class Dispatcher:
    def __init__(self, services: Services, routes: Sequence[Route]) -> None:
        self._services = services
        self._openapi = OpenApi(routes)
        self._router = Router(routes)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        path = address(scope)
        route, scope["path_params"] = self._router.find(scope["method"], path)
        scope["rgrid.services"] = self._services
        scope["rgrid.route"] = route
        scope["rgrid.openapi"] = self._openapi
        await self._authorise(scope, route)
        if route.query is None and scope["query_string"]:
            no_query(scope["query_string"])
        response = await route.handler(Request(scope, receive))
        await response(scope, receive, send)

    async def _authorise(self, scope: AsgiScope, route: Route) -> None:
        if route.scope is None:
            return
        token = bearer(scope["headers"])
        if route.scope is Scope.NODE:
            scope["rgrid.caller"] = await find_node(self._services.pool, token)
            return
        caller = scope["rgrid.caller"] = await self._services.keys.find(token)
        names = scope["path_params"]
        caller.require(route.scope, function=names.get("name") or names.get("function"), own=route.own)


def address(scope: AsgiScope) -> str:
    """The path as it was sent, if it can name anything."""
    raw: bytes = scope["raw_path"]
    if len(raw) > PATH_CAP_BYTES:
        raise AddressTooLong(f"the path is longer than {PATH_CAP_BYTES} bytes")
    if KEY_IN_URL.search(scope["query_string"]):
        raise Malformed("never put a key into a URL: revoke this one and send it in the Authorization header")
    path = raw.decode("latin-1")
    if not PATH.fullmatch(path):
        raise NotFound("there is no such path")
    return path

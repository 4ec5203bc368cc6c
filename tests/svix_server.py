"""The part of Svix's API that RGrid calls, over HTTP on a loopback port: applications, endpoints, types, messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

TOKEN = "testsk_1"


@dataclass
class SvixServer:
    """What it was told. ``sent`` has (url, message) for each message that an endpoint would have been sent."""

    url: str = ""
    applications: dict[str, dict[str, Any]] = field(default_factory=dict)
    endpoints: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    messages: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    broken: int | None = None
    """A status that it answers everything with."""
    stubborn: set[str] = field(default_factory=set)
    """Endpoints that it lets nobody change."""
    lose_answers: bool = False
    """Takes messages, and says nothing of it."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def touched(self) -> dict[str, str]:
        self.now += timedelta(milliseconds=1)
        at = max(self.now, datetime.now(UTC)).isoformat()
        return {"createdAt": at, "updatedAt": at}

    async def answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return problem(401, "authentication_failed")
        if self.broken is not None:
            return problem(self.broken, "broken")
        answered: web.StreamResponse = await handler(request)
        if self.lose_answers and request.path.endswith("/msg"):
            assert request.transport is not None
            request.transport.abort()
        return answered

    async def make_application(self, request: web.Request) -> web.Response:
        given = await request.json()
        assert request.query["get_if_exists"] == "true"
        made = self.applications.setdefault(
            given["uid"], {**given, "id": f"app_{len(self.applications)}", "metadata": {}, **self.touched()}
        )
        return web.json_response(made)

    async def list_applications(self, request: web.Request) -> web.Response:
        return paged(request, list(self.applications.values()))

    async def make_endpoint(self, request: web.Request) -> web.Response:
        given = await request.json()
        key = self.key(request, given["uid"])
        if key in self.endpoints:
            return problem(409, "conflict")
        if not 24 + 8 <= len(given["secret"].removeprefix("whsec_")) <= 100:
            return web.json_response({"detail": [{"loc": ["secret"], "msg": "bad length", "type": "x"}]}, status=422)
        self.endpoints[key] = {
            "id": f"ep_{len(self.endpoints)}", "metadata": {}, "description": "", "disabled": False,
            "previous": [], **given, **self.touched(),
        }  # fmt: skip
        return web.json_response(self.endpoints[key], status=201)

    async def list_endpoints(self, request: web.Request) -> web.Response:
        return paged(request, [each for key, each in self.endpoints.items() if key[0] == request.match_info["app"]])

    async def read_endpoint(self, request: web.Request) -> web.Response:
        return web.json_response(self.endpoints[self.key(request)])

    async def change_endpoint(self, request: web.Request) -> web.Response:
        found = self.endpoints[self.key(request)]
        if request.match_info["ep"] in self.stubborn:
            return web.json_response({"detail": [{"loc": ["url"], "msg": "not this one", "type": "x"}]}, status=422)
        found.update({**await request.json(), "updatedAt": self.touched()["updatedAt"]})
        return web.json_response(found)

    async def delete_endpoint(self, request: web.Request) -> web.Response:
        del self.endpoints[self.key(request)]
        return web.Response(status=204)

    async def read_secret(self, request: web.Request) -> web.Response:
        return web.json_response({"key": self.endpoints[self.key(request)]["secret"]})

    async def rotate(self, request: web.Request) -> web.Response:
        given, found = await request.json(), self.endpoints[self.key(request)]
        found["previous"] = [found["secret"]] if given["gracePeriodSeconds"] else []
        found["secret"] = given["key"]
        return web.json_response({"key": given["key"]})

    async def make_type(self, request: web.Request) -> web.Response:
        given, name = await request.json(), request.match_info["name"]
        self.types[name] = given["description"]
        return web.json_response({"name": name, "deprecated": False, **given, **self.touched()})

    async def make_message(self, request: web.Request) -> web.Response:
        given, application = await request.json(), request.match_info["app"]
        if application not in self.applications or given["eventType"] not in self.types:
            return problem(404, "not_found")
        key = (application, given["eventId"])
        if key in self.messages:
            return problem(409, "event_id_conflict")
        assert request.headers["idempotency-key"] == given["eventId"]
        self.messages[key] = {**given, "id": f"msg_of_svix_{len(self.messages)}", "timestamp": self.touched()["createdAt"]}
        for (of, _), endpoint in self.endpoints.items():
            if of == application and not endpoint["disabled"] and set(endpoint["channels"]) & set(given["channels"]):
                self.sent.append((endpoint["url"], given))
        return web.json_response(self.messages[key], status=202)

    async def resend(self, request: web.Request) -> web.Response:
        message = self.messages[request.match_info["app"], request.match_info["msg"]]
        self.sent.append((self.endpoints[self.key(request)]["url"], message))
        return web.json_response({}, status=202)

    def key(self, request: web.Request, uid: str | None = None) -> tuple[str, str]:
        return request.match_info["app"], uid or request.match_info["ep"]


def problem(status: int, code: str) -> web.Response:
    return web.json_response({"code": code, "detail": f"it is {code}"}, status=status)


def paged(request: web.Request, rows: list[dict[str, Any]]) -> web.Response:
    """One at a time, however many are asked for, so that pages are gone through."""
    start = int(request.query.get("iterator", "0"))
    done = start + 1 >= len(rows)
    return web.json_response({"data": rows[start : start + 1], "iterator": str(start + 1), "done": done})


@asynccontextmanager
async def svix_server() -> AsyncIterator[SvixServer]:
    server = SvixServer()

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        return await server.answer(request, handler)

    application = web.Application(middlewares=[middleware])
    one = "/api/v1/app/{app}/endpoint/{ep}"
    application.add_routes(
        [
            web.post("/api/v1/app", server.make_application),
            web.get("/api/v1/app", server.list_applications),
            web.post("/api/v1/app/{app}/endpoint", server.make_endpoint),
            web.get("/api/v1/app/{app}/endpoint", server.list_endpoints),
            web.get(one, server.read_endpoint),
            web.patch(one, server.change_endpoint),
            web.delete(one, server.delete_endpoint),
            web.get(f"{one}/secret", server.read_secret),
            web.post(f"{one}/secret/rotate", server.rotate),
            web.put("/api/v1/event-type/{name}", server.make_type),
            web.post("/api/v1/app/{app}/msg", server.make_message),
            web.post("/api/v1/app/{app}/msg/{msg}/endpoint/{ep}/resend", server.resend),
        ]
    )
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()

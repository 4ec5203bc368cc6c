"""What every answer has: a request id, safe headers, a line in the log. What fails becomes a problem here."""

from __future__ import annotations

import asyncio
import re
import time
from secrets import token_hex

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.errors import RGridError
from gateway.problems import kind_of, problem_response
from gateway.request_metrics import NO_ROUTE, RequestMetrics

log = structlog.get_logger(__name__)

CLIENT_ID = re.compile(rb"[0-9A-Za-z_.:=+/-]{1,128}")
LINK = re.compile(rb"/+r/")
QUIET = frozenset({"health", "node"})
"""Tags of routes that somebody calls all the time."""
NOSNIFF = (b"x-content-type-options", b"nosniff")
SETTLE_S = 0.1
LINGER_S = 2.0


class Envelope:
    """Plain ASGI: it stands around every request, so it costs as little as it can."""

    def __init__(self, app: ASGIApp, requests: RequestMetrics) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"not a protocol of this gateway: {scope['type']}")
        started = time.perf_counter()
        request_id = scope["rgrid.request_id"] = f"req_{token_hex(12)}"
        answer = Answer(send, [(b"rgrid-request-id", request_id.encode()), NOSNIFF])
        expects = False
        for name, value in scope["headers"]:
            if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                receive = answer.body = Body(receive)
            elif name == b"expect":
                expects = True
            elif name == b"x-request-id" and CLIENT_ID.fullmatch(value):
                answer.headers.append((name, value))
        if expects and answer.body is not None:
            answer.body.held_back = True
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            answer.status = 499  # nobody is there to be answered; nginx logs this number
        except Exception as error:
            if not isinstance(error, RGridError):
                _tell_of(error, scope)
            if answer.status:
                raise  # half an answer is out: only a cut connection tells the client
            await problem_response(error, request_id)(scope, receive, answer.send)
        finally:
            route, caller = scope.get("rgrid.route"), scope.get("rgrid.caller")
            seconds = time.perf_counter() - started
            method, path = (NO_ROUTE, NO_ROUTE) if route is None else (route.method, route.path)
            self._requests.answered(method, path, answer.status, seconds)
            tell = log.debug if route is not None and route.tag in QUIET else log.info
            tell(
                "request",
                method=scope["method"],
                path=shown_path(scope),
                status=answer.status,
                ms=round(seconds * 1000, 1),
                key=getattr(caller, "key_id", None),
                request_id=request_id,
            )


def _tell_of(error: Exception, scope: Scope) -> None:
    about = {"request_id": scope["rgrid.request_id"], "path": shown_path(scope)}
    if kind_of(error) is None:
        log.error("request failed", **about, exc_info=error)
    else:  # while a part is away this is every request, and where in the code it broke says nothing
        log.warning("request failed", **about, error=f"{type(error).__name__}: {error}"[:200])


def shown_path(scope: Scope) -> str:
    """The path for the log. A link's token is as good as a key, so it does not stand there."""
    raw: bytes = scope["raw_path"]
    # Also where the path led to no route: to that of a link with another method, or with a slash too many.
    if "token" in scope.get("path_params", ()) or LINK.match(raw):
        return "/r/{token}"
    return raw[:256].decode("latin-1")


class Body:
    """The request's body on its way in. ``open`` until its end was read."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.open = True
        self.held_back = False  # `Expect: 100-continue`: the client sends nothing before somebody reads

    async def __call__(self) -> Message:
        self.held_back = False
        message = await self._receive()
        if not message.get("more_body", False):
            self.open = False
        return message

    async def drain(self, seconds: float) -> None:
        """Read and forget what comes, for so long."""
        if self.held_back:
            return
        try:
            async with asyncio.timeout(seconds):
                while self.open:
                    await self()
        except TimeoutError:
            return


class Answer:
    """The response on its way out.

    An answer that goes out while the client still sends (too large, not authorised, no such path) ends the
    connection. It lingers first: closing over unread bytes makes the kernel send a reset, which may take the
    answer from the client before it has read it.
    """

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self.headers = headers
        self.body: Body | None = None
        self.status = 0
        self._lingers = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._lingers and not message.get("more_body", False):
            assert self.body is not None
            await self._send({**message, "more_body": True})
            await self.body.drain(LINGER_S)
            await self._send({"type": "http.response.body", "body": b""})
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        self.status = message["status"]
        headers = message["headers"] = [*message["headers"], *self.headers]
        if not any(name == b"cache-control" for name, _ in headers):
            headers.append((b"cache-control", b"no-store"))
        if self.body is not None and self.body.open:
            await self.body.drain(SETTLE_S)  # a small body that is here already costs nobody the connection
            if self.body.open:
                self._lingers = True
                headers.append((b"connection", b"close"))
        await self._send(message)

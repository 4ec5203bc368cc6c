"""What every answer has: a request id, safe headers, a line in the log; and a problem document if all else fails."""

from __future__ import annotations

import re
import time
from secrets import token_hex

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.errors import RGridError
from gateway.problems import kind_of, problem_response

log = structlog.get_logger(__name__)

CLIENT_ID = re.compile(rb"[0-9A-Za-z_.:=+/-]{1,128}")


class Envelope:
    """Plain ASGI: it stands around every request, so it costs as little as it can."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"not a protocol of this gateway: {scope['type']}")
        request_id = scope["rgrid.request_id"] = f"req_{token_hex(12)}"
        started, status = time.perf_counter(), 0
        extra = [(b"rgrid-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        for name, value in scope["headers"]:
            if name == b"x-request-id" and CLIENT_ID.fullmatch(value):
                extra.append((b"x-request-id", value))
                break

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = [*message.get("headers", ()), *extra]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = 499  # nobody is there to answer; nginx logs this number
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        except Exception as error:
            if not isinstance(error, RGridError):
                level = log.error if kind_of(error) is None else log.warning
                level("request failed", request_id=request_id, path=scope["path"], exc_info=error)
            if status:
                raise  # half an answer is out: only cutting the connection tells the client
            await problem_response(error, request_id)(scope, receive, send_with_headers)
        finally:
            caller = scope.get("rgrid.caller")
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.perf_counter() - started) * 1000, 1),
                request_id=request_id,
                key=getattr(caller, "key_id", None),
            )

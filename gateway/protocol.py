"""uvicorn's httptools protocol with limits on a request's head: bytes, headers, seconds.

What is no HTTP is answered in the form that every other failure has. Nothing of a request that breaks a limit
reaches the application, and its connection is closed: what follows cannot be told from a smuggled request.
"""

from __future__ import annotations

import asyncio
import re
from secrets import token_hex
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from functions.errors import HeadersTooLarge, Malformed, MethodNotAllowed, RGridError, TimedOut
from gateway.problems import problem_response

log = structlog.get_logger(__name__)

HEAD_CAP_BYTES = 64 * 1024
HEADERS_CAP = 100
HEAD_S = 15.0
LINGER_S = 2.0
"""How long a refused client may go on sending: closing over unread bytes makes the kernel send a reset, which may
take the answer from the client before it has read it."""
STALL_S = 60.0
"""A client that reads nothing for so long while an answer waits for it is cut off."""

METHODS = ("DELETE", "GET", "HEAD", "POST", "PUT")
_REQUEST_LINE = re.compile(rb"\r?\n?[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64} [!-~]{1,4096} HTTP/1\.[01]\r\n")


class GatewayProtocol(HttpToolsProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._head_bytes = 0
        self._refused: RGridError | None = None
        self._deaf = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stall_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        begins_here = not self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Upgrades are not taken. The answer goes out as usual, but what follows may be another protocol.
            self._deaf = True
            self.cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            self._refuse(self._refused or _fault(error, data, begins_here))
            return
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_CAP_BYTES:
            self._refuse(_head_too_large())
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # Not with any bytes, as in the base class: a client that sends only line breaks would stay for ever.
        self._unset_keepalive_if_required()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        self._refused = self._fault_of_head()
        if self._refused is not None:
            raise ValueError("refused")  # comes out of feed_data as HttpParserCallbackError
        super().on_headers_complete()

    def _fault_of_head(self) -> RGridError | None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.headers) > HEADERS_CAP or size > HEAD_CAP_BYTES:
            return _head_too_large()
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return Malformed("this is not HTTP/1.1")
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            # The parser would undo the chunks and take what is in them as it is.
            return Malformed("a body may be sent in chunks, and in no other transfer coding")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts != 1 and not (hosts == 0 and version == "1.0"):
            return Malformed("a request has exactly one Host header")
        return None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(TimedOut(f"the request's headers did not arrive within {HEAD_S:g} seconds"))
        elif self.cycle is None:
            self.transport.close()  # connected and never said a word

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: RGridError) -> None:
        """Answer and hang up; but an answer that is under way goes first, and is then the last."""
        self._deaf = True
        self._stop_head_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False  # the request before is whole: it is answered and then we close
                return
            if self.pipeline:
                self.pipeline.popleft()  # this one was not begun, and those before it are answered
                return
            started, cycle.disconnected = cycle.response_started, True
            cycle.message_event.set()
            if started:
                self.transport.close()
                return
        self._write(error)
        self._hang_up()

    def _hang_up(self) -> None:
        """Say no more, and close when the client does, or soon."""
        if self._linger_timer is None and not self.transport.is_closing():
            self.transport.write_eof()
            self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if self._deaf and last:
            self._hang_up()

    def _write(self, error: RGridError) -> None:
        request_id = f"req_{token_hex(12)}"
        answer = problem_response(error, request_id)
        headers = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            (b"rgrid-request-id", request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if not any(name == b"connection" for name, _ in headers):
            headers.append((b"connection", b"close"))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[answer.status_code], lines, bytes(answer.body)))
        log.info("request refused", status=answer.status_code, code=error.code, request_id=request_id)


def _fault(error: httptools.HttpParserError, data: bytes, begins_here: bool) -> RGridError:
    no_method = isinstance(error, httptools.HttpParserInvalidMethodError) and begins_here
    if no_method and _REQUEST_LINE.match(data):
        return MethodNotAllowed("there is no such method here", allowed=METHODS)
    return Malformed("this is not HTTP/1.1")


def _head_too_large() -> RGridError:
    return HeadersTooLarge(f"more than {HEADERS_CAP} headers or {HEAD_CAP_BYTES} bytes of them")

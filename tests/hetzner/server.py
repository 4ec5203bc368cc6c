"""The emulator: the API over HTTP on a loopback port, a thread for each connection, and what a test turns.

``with Emulator() as cloud: hcloud.Client(cloud.token, cloud.url)``. Virtual time stands still until ``advance``, unless
``speed`` is given. Servers get the metadata service under ``metadata_url``, or at the root if they call from their own
address.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.hetzner import goods, shapes
from tests.hetzner.api import Api, Reply, Token
from tests.hetzner.clock import START, VirtualClock
from tests.hetzner.cloud import Cloud
from tests.hetzner.limiter import Bucket
from tests.hetzner.rules import Answer, Call, Drop, Edit, Effect, Hang, Hold, Rule, Rules, Slow
from tests.hetzner.things import Fault, Machines, Server

REASONS = {200: "OK", 201: "Created", 204: "No Content"}
TICK_S = 0.05


class Emulator:
    def __init__(
        self,
        *,
        start: datetime = START,
        speed: float = 0.0,
        seed: int = 1,
        host: str = "127.0.0.1",
        machines: Machines | None = None,
        ipv4: Iterator[str] | None = None,
    ) -> None:
        self.clock = VirtualClock(start, speed=speed)
        self.cloud = Cloud(self.clock, machines=machines, ipv4=ipv4)
        self.api = Api(self.cloud)
        self.rules = Rules(seed)
        self.token = secrets.token_hex(32)
        self.tokens = {self.token: Token()}
        self.buckets: dict[str, Bucket] = {}
        self.calls: list[Call] = []
        self.on_call: Callable[[Call, str], None] = lambda call, phase: None
        """Called with `before` and `after` each call is carried out, in its thread: where a test kills a client."""
        self.closing = threading.Event()
        self.faults: list[BaseException] = []
        self._http = _Server((host, 0), _Handler)
        self._http.emulator = self
        self.host, self.port = host, self._http.server_address[1]
        self.url = f"http://{host}:{self.port}/v1"
        self._threads = [threading.Thread(target=self._http.serve_forever, args=(0.05,), name="hetzner", daemon=True)]
        if speed:
            self._threads.append(threading.Thread(target=self._tick, name="hetzner-clock", daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object = None, *exc: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.drop_connections()
        self._http.server_close()
        for thread in self._threads:
            thread.join()
        if self.faults and kind is None:
            raise RuntimeError("the emulator itself failed") from self.faults[0]

    def _tick(self) -> None:
        while not self.closing.wait(TICK_S):
            self.cloud.settle()

    @property
    def now(self) -> datetime:
        return self.clock.now()

    def advance(self, by: timedelta) -> None:
        self.cloud.advance(by)

    def inject(self, effect: Effect, **matcher: Any) -> Rule:
        """Let a fault happen: ``inject(Drop(), **CREATE)``; see ``rules.Rule`` for the matchers."""
        return self.rules.add(effect, **matcher)

    def metadata_url(self, server: Server) -> str:
        return f"http://{self.host}:{self.port}/of/{server.id}/hetzner/v1"

    def made(self, method: str, path: str) -> list[Call]:
        """The calls so far with this method and this whole path."""
        return [call for call in self.calls if (call.method, call.path) == (method, path)]

    def bucket(self, token: str) -> Bucket:
        # A token is good for one project, and every token here for the same one.
        return self.buckets.setdefault("project" if token in self.tokens else token, Bucket())

    def carry_out(self, call: Call, effects: list[Effect]) -> tuple[int, Any, str | None]:
        """Status, document and link of the true answer."""
        try:
            with self.cloud.lock:
                self._admit(call)
                reply = self.api.handle(call, effects)
                call.committed = True
                return reply.status, reply.document, reply.link
        except Fault as fault:
            return fault.status, error(fault.code, fault.message, fault.details), None
        finally:
            self.cloud.settle()

    def _admit(self, call: Call) -> None:
        if not self.bucket(call.token).take(call.at):
            shown = f"{call.token[:32]}..."
            limit = self.bucket(call.token).limit
            message = f"Limit of '{limit}' requests per hour for token '{shown}' reached."
            raise Fault(429, "rate_limit_exceeded", message)
        token = self.tokens.get(call.token)
        if token is None or token.revoked:
            raise Fault(401, "unauthorized", "unable to authenticate")
        if token.readonly and call.method != "GET":
            raise Fault(401, "token_readonly", "token is only allowed to perform GET requests")

    def metadata(self, path: str, peer: str) -> Reply:
        number = None
        if path.startswith("/of/"):
            _, _, number, rest = path.split("/", 3)
            path = f"/{rest}"
        with self.cloud.lock:
            server = next(
                (
                    each
                    for each in self.cloud.servers.values()
                    if (str(each.id) == number if number else each.ipv4 is not None and each.ipv4.ip == peer)
                ),
                None,
            )
        if server is None:
            return Reply(404, "not found")
        facts = {
            "availability-zone": f"{server.location}-dc1",
            "hostname": server.name,
            "instance-id": server.id,
            "public-ipv4": server.ipv4.ip if server.ipv4 else "",
            "region": goods.LOCATIONS[server.location][6],
        }
        if path == "/hetzner/v1/userdata":
            return Reply(200, server.machine.user_data) if server.user_data else Reply(404, "not found")
        if path == "/hetzner/v1/metadata":
            return Reply(200, "".join(f"{key}: {value}\n" for key, value in facts.items()))
        fact = facts.get(path.removeprefix("/hetzner/v1/metadata/"))
        return Reply(404, "not found") if fact is None else Reply(200, str(fact))


def error(code: str | None, message: str | None, details: Any = None) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": details}}


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 512
    emulator: Emulator

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is a fault of the emulator, raised when it ends."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.emulator.faults.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *args: object) -> None:
        pass

    def _handle(self) -> None:
        emulator = self.server.emulator
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        emulator.cloud.settle()
        if not parts.path.startswith("/v1/"):
            reply = emulator.metadata(parts.path, self.client_address[0])
            self._send(reply.status, str(reply.document).encode(), "text/plain", {})
            return
        body: Any = None
        with suppress(ValueError):
            body = json.loads(raw) if raw else None
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        path, query = parts.path.removeprefix("/v1"), parse_qs(parts.query, keep_blank_values=True)
        with emulator.cloud.lock:
            call = Call(len(emulator.calls), self.command, path, query, body, token, emulator.cloud.now)
            emulator.calls.append(call)
            effects = emulator.rules.of(call)
        emulator.on_call(call, "before")
        self._answer(emulator, call, effects)

    def _answer(self, emulator: Emulator, call: Call, effects: list[Effect]) -> None:
        holds = [effect for effect in effects if isinstance(effect, Hold)]
        for hold in holds:
            if not hold.commit:
                self._hold(emulator, hold)
        instead = next((effect for effect in effects if isinstance(effect, Answer | Drop | Hang)), None)
        status, document, link = 0, None, None
        if instead is None or instead.commit:
            status, document, link = emulator.carry_out(call, effects)
        for effect in effects:
            if isinstance(effect, Edit):
                effect.change(document)
        emulator.on_call(call, "after")
        for hold in holds:
            if hold.commit:
                self._hold(emulator, hold)
        slow = next((effect for effect in effects if isinstance(effect, Slow)), None)
        if slow is not None and slow.pieces == 1:
            emulator.closing.wait(slow.seconds)
        if isinstance(instead, Hang):
            emulator.closing.wait(instead.seconds)
        if isinstance(instead, Drop | Hang):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = b"" if document is None else json.dumps(document).encode()
        headers = emulator.bucket(call.token).headers(emulator.cloud.now)
        kind = "application/json"
        if isinstance(instead, Answer):
            status, link = instead.status, None
            headers |= instead.headers
            content = json.dumps(error(instead.code, instead.message, instead.details)).encode()
            if instead.html:
                kind, content = "text/html", f"<html><h1>{instead.status}</h1></html>".encode()
        if link:
            headers["Link"] = link
        call.status, call.answered = status, content
        self._send(status, content, kind, headers, slow)

    @staticmethod
    def _hold(emulator: Emulator, hold: Hold) -> None:
        hold.reached.set()
        while not hold.go_on.wait(0.05) and not emulator.closing.is_set():
            pass

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str], slow: Slow | None = None) -> None:
        emulator = self.server.emulator
        lines = {
            "Date": shapes.http_date(emulator.cloud.now, emulator.clock.date_shift),
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "X-Correlation-Id": secrets.token_hex(8),
            **headers,
        }
        if status == 204:
            del lines["Content-Type"], lines["Content-Length"]
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\n"
        whole = (head + "".join(f"{key}: {value}\r\n" for key, value in lines.items()) + "\r\n").encode() + content
        pieces = slow.pieces if slow else 1
        size = -(-len(whole) // pieces)
        for at in range(0, len(whole), size):
            self.wfile.write(whole[at : at + size])
            if pieces > 1 and slow is not None:
                emulator.closing.wait(slow.seconds / pieces)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

"""The server by raw sockets: what is no HTTP, what is too large, too slow, or smuggles. And how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from functions.errors import Unavailable
from gateway import body, protocol, server
from gateway.body import read_raw
from gateway.problems import Problem
from gateway.routes import Route, services
from gateway.server import serve
from gateway.services import Services
from gateway.settings import Settings
from tests.gateway.conftest import listening
from tests.postgres import free_port

OK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"Host: x\r\nContent-Type: application/json\r\n"


async def echo(request: Request) -> Response:
    return JSONResponse({"size": len(await read_raw(request))})


async def wait(request: Request) -> Response:
    await services(request).stopping.wait()
    return JSONResponse({"stopped": True})


async def stream(request: Request) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        yield b"begun\n"
        await services(request).stopping.wait()
        yield b"ended\n"

    return StreamingResponse(lines(), media_type="text/plain")


async def flood(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)  # once the client is gone, nothing else here gives way

    return StreamingResponse(chunks(), media_type="text/plain")


async def hang(request: Request) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


async def healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


ROUTES = (
    Route("GET", "/healthz", healthz, "", None, tag="health"),
    Route("POST", "/echo", echo, "", None, body=("application/json",)),
    Route("GET", "/wait", wait, "", None),
    Route("GET", "/stream", stream, "", None),
    Route("GET", "/flood", flood, "", None),
    Route("GET", "/hang", hang, "", None),
)


@pytest.fixture
async def at(shared_services: Services) -> AsyncIterator[int]:
    async with listening(shared_services, ROUTES) as gateway:
        yield gateway.port


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> Problem:
        assert self.headers["content-type"] == "application/problem+json", self
        found = Problem.model_validate_json(self.body)
        assert (found.status, found.instance) == (self.status, self.headers["rgrid-request-id"])
        return found


def parse(data: bytes) -> list[Answer]:
    """All answers in what a connection gave."""
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", len(data)))
        answers.append(Answer(int(first.split(" ")[1]), headers, data[:size]))
        data = data[size:]
    return answers


async def say(port: int, *parts: bytes, pause_s: float = 0.02, half_close: bool = False) -> list[Answer]:
    """Send the parts one by one, and return the answers up to the moment when the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for number, part in enumerate(parts):
            if number:
                await asyncio.sleep(pause_s)
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(3):
            return parse(await reader.read(-1))
    finally:
        writer.close()


REFUSED = [
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="length and transfer encoding"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400, id="transfer encoding and length"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", 400, id="two lengths"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, id="the same length twice"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: +2\r\n\r\n{}", 400, id="signed length"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 2, 2\r\n\r\n{}", 400, id="list of lengths"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}", 400, id="endless length"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length : 2\r\n\r\n{}", 400, id="space before the colon"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, id="unknown transfer encoding"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400, id="chunked not last"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, id="compressed on the way"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="two transfer encodings"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400, id="bad chunk size"),
    pytest.param(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n", 400, id="chunk size ends in a bare line feed"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Folded: a\r\n b\r\n\r\n", 400, id="folded header"),
    pytest.param(b"GET /healthz HTTP/1.1\nHost: x\n\n", 400, id="bare line feeds"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n", 400, id="a bare line feed between headers"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: a\rb\r\n\r\n", 400, id="bare carriage return in a header"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n", 400, id="NUL in a header"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\x00: a\r\n\r\n", 400, id="NUL in a header's name"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n", 400, id="header without a name"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", 400, id="header without a colon"),
    pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", 400, id="no host"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, id="two hosts"),
    pytest.param(b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", 400, id="another version"),
    pytest.param(b"GET /healthz HTTP/0.9\r\nHost: x\r\n\r\n", 400, id="an old version"),
    pytest.param(b"GET /healthz\r\n\r\n", 400, id="no version"),
    pytest.param(b"GET /heal thz HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="space in the path"),
    pytest.param(b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="NUL in the path"),
    pytest.param(b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="not ASCII in the path"),
    pytest.param(b"GET healthz HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="relative path"),
    pytest.param(b"CONNECT healthz:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="CONNECT"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, 400, id="TLS"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2"),
    pytest.param(b"*1\r\n$4\r\nPING\r\n", 400, id="another protocol"),
    pytest.param(b"FOO /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405, id="unknown method"),
    pytest.param(b"get /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405, id="method in lower case"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n", 431, id="huge header"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 400_000, 431, id="huge header that never ends"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A" * 200_000, 431, id="header name that never ends"),
    pytest.param(b"GET /" + b"a" * 200_000, 431, id="path that never ends"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431, id="101 headers"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 431, id="10,001 headers"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), REFUSED)
async def test_what_breaks_http_is_a_problem_and_the_end_of_the_connection(
    at: int, sent: bytes, status: int
) -> None:
    answers = await say(at, sent)
    assert [answer.status for answer in answers] == [status]
    assert answers[0].headers["connection"] == "close"
    assert answers[0].problem.detail
    if status == 405:
        assert "GET" in answers[0].headers["allow"]


@pytest.mark.parametrize("sent", [param.values[0] for param in REFUSED], ids=[param.id for param in REFUSED])
async def test_bytes_that_come_one_by_one_are_judged_alike(at: int, sent: bytes) -> None:
    if len(sent) > 1000:
        parts = [sent[start : start + 5000] for start in range(0, len(sent), 5000)]
    else:
        parts = [sent[:1], sent[1:20], *(sent[place : place + 1] for place in range(20, len(sent)))]
    answers = await say(at, *parts, pause_s=0)
    assert [answer.status for answer in answers][:1] in ([400], [405], [431])
    assert len(answers) == 1


async def test_nothing_after_a_refused_request_is_served(at: int) -> None:
    smuggled = (
        b"POST /echo HTTP/1.1\r\n"
        + HEAD
        + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    assert [answer.status for answer in await say(at, smuggled + OK + OK)] == [400]


async def test_requests_before_a_refused_one_are_answered(at: int) -> None:
    answers = await say(at, OK + OK + b"nonsense\r\n\r\n")
    assert [answer.status for answer in answers][:2] == [200, 200]
    assert all(answer.status in (200, 400) for answer in answers)


async def test_a_refusal_never_stands_inside_another_answer(at: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"begun" in await reader.readuntil(b"begun\n\r\n")
    writer.write(b"nonsense\r\n\r\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.read(1)
    writer.close()


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_connection_is_kept_for_further_requests(at: int, pieces: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    for _ in range(3):
        for piece in [OK] if pieces == 1 else [OK[:9], OK[9:]]:
            writer.write(piece)
            await asyncio.sleep(0.01)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"connection: close" not in head
        await reader.readexactly(len(b'{"status":"ok"}'))
    writer.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"//healthz", 404),
        (b"/healthz/", 404),
        (b"/healthz//", 404),
        (b"/./healthz", 404),
        (b"/x/../healthz", 404),
        (b"/%2e/healthz", 404),
        (b"/%68ealthz", 404),
        (b"/x%2f..%2fhealthz", 404),
        (b"/healthz%00", 404),
        (b"/healthz%2f", 404),
        (b"/healthz%20", 404),
        (b"/healthz;a=b", 404),
        (b"/HEALTHZ", 404),
        (b"/Healthz", 404),
        (b"\\healthz", 400),
        (b"/\\healthz", 404),
        (b"/healthz#x", 200),  # a fragment is no part of what is asked for
        (b"http://elsewhere/healthz", 200),
        (b"http://elsewhere//healthz", 404),
        (b"*", 404),
        (b"/" + b"a" * 16_000, 414),
        (b"/healthz/" + b"../" * 5_000, 414),
    ],
)
async def test_a_path_names_what_it_says_or_nothing(at: int, path: bytes, status: int) -> None:
    answers = await say(at, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert [answer.status for answer in answers] == [status]
    if status != 200:
        assert answers[0].problem


@pytest.mark.parametrize(
    "method", ["TRACE", "OPTIONS", "PATCH", "PUT", "DELETE", "PROPFIND", "PURGE", "LINK"]
)
async def test_a_method_that_a_path_lacks_is_405(at: int, method: str) -> None:
    answers = await say(at, f"{method} /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert (answers[0].status, answers[0].headers["allow"]) == (405, "GET, HEAD")
    assert answers[0].problem.code == "method_not_allowed"


async def test_headers_that_override_the_method_do_nothing(at: int) -> None:
    override = b"X-HTTP-Method-Override: POST\r\nX-HTTP-Method: POST\r\nX-Method-Override: POST\r\n"
    answers = await say(at, b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + override + b"\r\n")
    assert answers[0].status == 405


async def test_head_has_the_headers_of_get_and_no_body(at: int) -> None:
    data = b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    writer.write(data)
    head, _, rest = (await reader.read(-1)).partition(b"\r\n\r\n")
    assert (b" 200 OK" in head, b"content-length: 15" in head, rest) == (True, True, b"")
    writer.close()


@pytest.mark.parametrize("protocol_name", [b"websocket", b"h2c", b"TLS/1.0"])
async def test_an_upgrade_is_ignored_and_what_follows_it_is_not_read(at: int, protocol_name: bytes) -> None:
    head = (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + protocol_name + b"\r\n\r\n"
    )
    answers = await say(at, head + OK)
    assert [answer.status for answer in answers] == [200]
    assert answers[0].headers["connection"] == "close"


async def test_no_foreign_origin_is_let_in(at: int) -> None:
    answers = await say(at, OK[:-2] + b"Origin: https://evil.example\r\nConnection: close\r\n\r\n")
    assert not [name for name in answers[0].headers if name.startswith("access-control")]
    assert answers[0].headers["x-content-type-options"] == "nosniff"
    assert answers[0].headers["cache-control"] == "no-store"


async def test_a_clients_request_id_comes_back_beside_ours_if_it_is_harmless(at: int) -> None:
    for value, comes_back in ((b"abc-123", True), (b"a b", False), (b"x" * 200, False), (b'"<a>', False)):
        answers = await say(at, OK[:-2] + b"X-Request-Id: " + value + b"\r\nConnection: close\r\n\r\n")
        assert ("x-request-id" in answers[0].headers) is comes_back
        assert answers[0].headers["rgrid-request-id"].startswith("req_")


async def test_a_refused_upload_is_answered_although_the_client_goes_on_sending(at: int) -> None:
    head = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 50000000\r\n\r\n"
    answers = await say(at, head, *[b"x" * 100_000] * 100, pause_s=0)
    assert (answers[0].status, answers[0].headers["connection"]) == (413, "close")
    assert answers[0].problem.code == "too_large"


async def test_a_chunked_upload_is_cut_at_the_cap(at: int) -> None:
    head = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answers = await say(at, head, *[chunk] * 17, pause_s=0)
    assert (answers[0].status, answers[0].headers["connection"]) == (413, "close")


async def test_a_client_that_waits_for_100_is_refused_before_it_sends(at: int) -> None:
    started = time.monotonic()
    head = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 50000000\r\nExpect: 100-continue\r\n\r\n"
    answers = await say(at, head)
    assert [answer.status for answer in answers] == [413]
    assert time.monotonic() - started < 1


async def test_a_client_that_waits_for_100_gets_it_when_its_body_is_wanted(at: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    writer.write(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert b'{"size":2}' in await reader.readuntil(b"}")
    writer.close()


async def test_a_small_body_that_nobody_reads_does_not_cost_the_connection(at: int) -> None:
    request = b"POST /nowhere HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}"
    answers = await say(at, request + OK[:-2] + b"Connection: close\r\n\r\n")
    assert [answer.status for answer in answers] == [404, 200]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    monkeypatch.setattr(body, "PATIENCE_S", 0.2)
    monkeypatch.setattr(protocol, "STALL_S", 0.3)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.3)
    yield


@pytest.mark.parametrize(
    "sent",
    [
        b"G",
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: a",
        OK + b"GET /healthz HTTP/1.1\r\n",
    ],
)
async def test_a_head_that_does_not_come_is_408(impatient: None, at: int, sent: bytes) -> None:
    answers = await say(at, sent)
    assert (answers[-1].status, answers[-1].problem.code) == (408, "request_timeout")
    assert answers[-1].headers["connection"] == "close"


async def test_a_head_that_drips_is_408_in_the_same_time(impatient: None, at: int) -> None:
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    writer.write(b"GET /healthz HTTP/1.1\r\n")

    async def drip() -> None:
        while True:
            writer.write(b"X-A: b\r\n")
            await asyncio.sleep(0.05)

    dripping = asyncio.ensure_future(drip())
    answers = parse(await reader.read(-1))
    dripping.cancel()
    writer.close()
    assert (answers[0].status, time.monotonic() - started < 2) == (408, True)


async def test_a_body_that_drips_is_408_in_the_same_time(impatient: None, at: int) -> None:
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    writer.write(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 1000\r\n\r\n")

    async def drip() -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.05)

    dripping = asyncio.ensure_future(drip())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 408 " in head and b"connection: close" in head
    assert time.monotonic() - started < 2
    await reader.read(-1)
    assert time.monotonic() - started < 5
    dripping.cancel()
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n", OK, OK + b"\r\n"])
async def test_a_connection_without_a_request_is_closed_in_the_end(
    impatient: None, at: int, sent: bytes
) -> None:
    started = time.monotonic()
    answers = await say(at, sent)
    assert [answer.status for answer in answers] == [200] * (OK in sent)
    assert time.monotonic() - started < 2


async def test_a_client_that_does_not_read_is_cut_off(impatient: None, at: int) -> None:
    raw = socket.create_connection(("127.0.0.1", at))
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(raw, b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0.6)
    # What the kernel had taken still comes; then the connection ends, as a reset or plainly.
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(5):
            while await loop.sock_recv(raw, 1 << 20):
                pass
    raw.close()


async def test_long_polls_and_streams_end_at_once_when_the_server_stops(shared_services: Services) -> None:
    async with listening(shared_services, ROUTES) as gateway:
        port, running = gateway.port, gateway.server
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            polls = [asyncio.ensure_future(client.get(path)) for path in ("/wait", "/stream")]
            idle = await asyncio.open_connection("127.0.0.1", port)
            while len(running.server_state.tasks) < 2:
                await asyncio.sleep(0.01)
            started = time.monotonic()
            running.stop()
            answers = await asyncio.gather(*polls)
            assert [answer.text for answer in answers] == ['{"stopped":true}', "begun\nended\n"]
            assert await idle[0].read(-1) == b""
            assert time.monotonic() - started < 2
            idle[1].close()


async def test_a_request_that_never_ends_does_not_keep_the_server(
    shared_services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GRACE_S", 0.3)
    started = time.monotonic()
    async with listening(shared_services, ROUTES) as gateway:
        port, running = gateway.port, gateway.server
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        while not running.server_state.tasks:
            await asyncio.sleep(0.01)
        running.stop()
    writer.close()
    assert time.monotonic() - started < 5


async def test_a_taken_port_is_said_in_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.port)):
        with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{settings.port} .*RGRID_PORT"):
            await serve(settings)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_serves_until_a_signal_and_exits_with_0(
    settings: Settings, how: signal.Signals
) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "RGRID_DATABASE_URL": settings.database_url.get_secret_value(),
        "RGRID_S3_ENDPOINT": settings.s3_endpoint,
        "RGRID_S3_BUCKET": settings.s3_bucket,
        "RGRID_S3_ACCESS_KEY_ID": settings.s3_access_key_id,
        "RGRID_S3_SECRET_ACCESS_KEY": settings.s3_secret_access_key.get_secret_value(),
        "RGRID_SECRET_KEY": settings.secret_key.get_secret_value(),
        "RGRID_PORT": str(settings.port),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "gateway.cli.running", "gateway",
        env=environ, stderr=asyncio.subprocess.PIPE, cwd="/",
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            ready = json.loads(await process.stderr.readline())
        assert (ready["event"], ready["url"]) == ("gateway ready", f"http://127.0.0.1:{settings.port}")
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{ready['url']}/readyz")).json() == {"status": "ok"}
        process.send_signal(how)
        async with asyncio.timeout(5):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_an_old_schema_is_refused_in_one_line(
    settings: Settings, postgres: object, services: Services
) -> None:
    await services.pool.execute("DELETE FROM schema_migrations")
    with pytest.raises(Unavailable, match="rgrid migrate"):
        await serve(settings.model_copy(update={"port": free_port()}))

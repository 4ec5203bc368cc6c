"""What receivers can do to a caller (SECURITY §4.4, "Receiver behaviour"): real servers on loopback."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from functions.egress import Answer, EgressFailed, EgressPolicy, Resolver, exchange
from functions.egress import connection as connecting
from tests.postgres import free_port
from tests.receivers import Authority, Handler, raw_server, read_request, says

LOOPBACK = EgressPolicy(allow=("127.0.0.0/8",))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def post(
    port: int,
    *,
    policy: EgressPolicy = LOOPBACK,
    body: bytes = b"{}",
    deadline_s: float = 5.0,
    cap: int = 65536,
) -> Answer:
    url = f"http://127.0.0.1:{port}/hook?a=b"
    return await exchange(policy, "POST", url, {"X-Test": "1"}, body, deadline_s=deadline_s, cap=cap)


async def failure(handler: Handler, **options: Any) -> EgressFailed:
    async with raw_server(handler) as port:
        with pytest.raises(EgressFailed) as caught:
            await post(port, **options)
    assert caught.value.address == "127.0.0.1"
    return caught.value


def leads_to(*addresses: str) -> Resolver:
    async def resolver(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolver


async def test_a_request_is_sent_as_given_and_the_answer_comes_back() -> None:
    seen = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(
            b"HTTP/1.1 202 Accepted\r\nRetry-After: 5\r\nX: a\r\nx: b\r\nContent-Length: 4\r\n\r\nbody"
        )

    async with raw_server(handler) as port:
        answer = await post(port, body=b'{"a": 1}')
    assert (answer.status, answer.body, answer.address) == (202, b"body", "127.0.0.1")
    assert answer.headers == {"retry-after": "5", "x": "a", "content-length": "4"}
    assert 0 <= answer.duration_ms < 5000
    line, headers, body = seen[0]
    assert (line, body) == ("POST /hook?a=b HTTP/1.1", b'{"a": 1}')
    assert headers == {
        "host": f"127.0.0.1:{port}",
        "connection": "close",
        "accept-encoding": "identity",
        "x-test": "1",
        "content-length": "8",
    }


async def test_headers_that_frame_the_request_are_not_the_callers() -> None:
    seen = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    theirs = {
        "Host": "evil.example",
        "content-length": "0",
        "Transfer-Encoding": "chunked",
        "Accept-Encoding": "gzip",
    }
    async with raw_server(handler) as port:
        await exchange(LOOPBACK, "POST", f"http://127.0.0.1:{port}/", theirs, b"abc")
        with pytest.raises(EgressFailed) as caught:
            await exchange(
                LOOPBACK, "POST", f"http://127.0.0.1:{port}/", {"X": "a\r\nHost: evil.example"}, b"abc"
            )
    assert caught.value.kind == "protocol"
    _, headers, body = seen[0]
    assert (headers["host"], headers["accept-encoding"], body) == (f"127.0.0.1:{port}", "identity", b"abc")
    assert "transfer-encoding" not in headers


async def test_the_environments_proxy_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with raw_server(says(OK)) as port:
        assert (await post(port)).status == 200


async def test_the_connection_goes_to_the_address_that_was_vetted_with_the_name_as_host() -> None:
    hosts, lookups = [], []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hosts.append((await read_request(reader))[1]["host"])
        writer.write(OK)

    async def flipping(host: str, port: int) -> Sequence[str]:
        lookups.append((host, port))
        return ["127.0.0.1"] if len(lookups) == 1 else ["169.254.169.254"]

    async with raw_server(handler) as port:
        answer = await exchange(
            LOOPBACK, "POST", f"http://rebinding.example:{port}/", {}, b"", resolver=flipping
        )
    assert (answer.status, answer.address) == (200, "127.0.0.1")
    assert hosts == [f"rebinding.example:{port}"]
    assert lookups == [("rebinding.example", port)]


async def test_an_address_that_does_not_answer_is_passed_over_for_the_next() -> None:
    async with raw_server(says(OK)) as port:
        answer = await exchange(
            LOOPBACK,
            "POST",
            f"http://a.example:{port}/",
            {},
            b"",
            resolver=leads_to("127.0.0.2", "127.0.0.1"),
        )
    # 127.0.0.1 sorts first; the server listens there only.
    assert answer.address == "127.0.0.1"
    async with raw_server(says(OK)) as port:
        with pytest.raises(EgressFailed) as caught:
            await exchange(
                LOOPBACK,
                "POST",
                f"http://a.example:{port}/",
                {},
                b"",
                resolver=leads_to("127.0.0.2", "127.0.0.3"),
            )
    assert (caught.value.kind, caught.value.address) == ("connect", "127.0.0.3")


async def test_a_refused_connection_is_a_failure_with_its_reason() -> None:
    with pytest.raises(EgressFailed, match=r"(?i)refused|connect") as caught:
        await post(free_port())
    assert caught.value.kind == "connect"


# Too slow


async def wait_for_ever(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_headers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: x\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "handler",
    [
        wait_for_ever,
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", then_wait=True),
        says(b"HTTP/1.1 200 OK\r\n\r\n", then_wait=True),
        says(b"HTTP/1.1 100 Continue\r\n\r\n", then_wait=True),
        drip,
        drip_headers,
    ],
    ids=[
        "silent",
        "silent in the body",
        "body without an end",
        "continue, then silent",
        "1 byte a time",
        "1 header a time",
    ],
)
async def test_the_deadline_is_for_the_whole_exchange(handler: Handler) -> None:
    started = time.monotonic()
    assert (await failure(handler, deadline_s=0.4)).kind == "timeout"
    assert time.monotonic() - started < 2


# Too much


async def endless(writer: asyncio.StreamWriter, part: bytes) -> int:
    """Write until the other side has had enough; how much that was."""
    written = 0
    try:
        while written < 50_000_000:
            writer.write(part)
            await writer.drain()
            written += len(part)
    except ConnectionError:
        pass
    return written


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"x" * 80 + b"\r\n", id="many headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1000, id="one header of 1 MB"),
        pytest.param(b"HTTP/1.1 200 ", b"x" * 1000, id="long reason"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40, id="100 for ever"),
        pytest.param(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", id="103 for ever"),
        pytest.param(b"", b"\r\n" * 500, id="empty lines"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1;" + b"x" * 4000 + b"\r\na\r\n",
            id="a byte of body in 4 kB of framing",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"X-Trailer: x\r\n" * 70,
            id="trailers for ever",
        ),
    ],
)
async def test_what_surrounds_the_body_is_bounded(first: bytes, then: bytes) -> None:
    written = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(first)
        written.set_result(await endless(writer, then))

    async with raw_server(handler) as port:
        with pytest.raises(EgressFailed) as caught:
            await post(port)
        assert caught.value.kind in ("too_large", "protocol")
        assert await asyncio.wait_for(written, 5) < 20_000_000  # the kernel's buffers are large, not endless


@pytest.mark.parametrize(
    "head", [b"", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 1000000000000\r\n"]
)
async def test_a_body_is_read_up_to_the_cap_and_its_status_counts(head: bytes) -> None:
    written = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        part = b"3e8\r\n" + b"x" * 1000 + b"\r\n" if b"chunked" in head else b"x" * 1000
        written.set_result(await endless(writer, part))

    async with raw_server(handler) as port:
        answer = await post(port, cap=10_000)
        assert (answer.status, answer.body) == (200, b"x" * 10_000)
        assert await asyncio.wait_for(written, 5) < 20_000_000


async def test_a_compressed_body_is_not_expanded() -> None:
    bomb = gzip.compress(b"\x00" * 10_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with raw_server(says(head, bomb)) as port:
        answer = await post(port)
    assert answer.body == bomb


# Not HTTP as it should be


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_not_followed(status: int) -> None:
    head = b"HTTP/1.1 %d Moved\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n" % status
    async with raw_server(says(head)) as port:
        assert (await post(port)).status == status


async def test_of_two_answers_the_second_is_ignored() -> None:
    async with raw_server(
        says(OK + b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", then_wait=True)
    ) as port:
        answer = await post(port)
    assert (answer.status, answer.body) == (200, b"ok")


async def test_informational_answers_are_passed_over() -> None:
    async with raw_server(
        says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK)
    ) as port:
        assert (await post(port)).status == 200


async def test_an_answer_before_the_request_was_read_counts() -> None:
    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)

    async with raw_server(handler) as port:
        assert (await post(port, body=b"x" * 200_000)).status == 413


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"hello\r\n\r\n"],
        [b"\x00\xff" * 100],
        [b"HTTP/2 200 OK\r\n\r\n"],
        [b"HTTP/1.1 99999 OK\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"],
        [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nBad Header\r\n\r\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00"],
    ],
)
async def test_what_is_no_proper_answer_is_a_failure(parts: list[bytes]) -> None:
    assert (await failure(says(*parts))).kind in ("protocol", "closed")


async def test_a_cookie_is_not_kept_and_a_connection_not_used_again() -> None:
    seen = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((writer.get_extra_info("peername"), (await read_request(reader))[1]))
        writer.write(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()
        assert await reader.read() == b""  # the caller closes

    async with raw_server(handler) as port:
        await post(port)
        await post(port)
    assert len({peer for peer, _ in seen}) == 2
    assert not any("cookie" in headers for _, headers in seen)


# TLS


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def secure(authority: Authority) -> EgressPolicy:
    return EgressPolicy(allow=("127.0.0.0/8",), ca_file=authority.ca_file)


async def test_tls_is_checked_against_the_name_and_names_it(authority: Authority) -> None:
    names: list[str | None] = []
    context = authority.server("hooks.example")
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with raw_server(says(OK), tls=context) as port:
        answer = await exchange(
            secure(authority),
            "POST",
            f"https://hooks.example:{port}/",
            {},
            b"",
            resolver=leads_to("127.0.0.1"),
        )
    assert (answer.status, answer.address, names) == (200, "127.0.0.1", ["hooks.example"])


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("hooks.example", {"expired": True}, "expired"),
        ("other.example", {}, "Hostname mismatch"),
        ("hooks.example", {"self_signed": True}, "self-signed"),
    ],
)
async def test_a_bad_certificate_is_a_failure_with_its_reason(
    authority: Authority, name: str, options: dict[str, bool], reason: str
) -> None:
    async with raw_server(says(OK), tls=authority.server(name, **options)) as port:
        with pytest.raises(EgressFailed, match=reason) as caught:
            await exchange(
                secure(authority),
                "POST",
                f"https://hooks.example:{port}/",
                {},
                b"",
                resolver=leads_to("127.0.0.1"),
            )
    assert caught.value.kind == "tls"


async def test_an_authority_that_nobody_named_is_not_trusted(authority: Authority) -> None:
    async with raw_server(says(OK), tls=authority.server("hooks.example")) as port:
        with pytest.raises(EgressFailed) as caught:
            await exchange(
                LOOPBACK, "POST", f"https://hooks.example:{port}/", {}, b"", resolver=leads_to("127.0.0.1")
            )
    assert caught.value.kind == "tls"


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_tls_before_1_2_is_refused(authority: Authority, version: str) -> None:
    context = authority.server("hooks.example")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    async with raw_server(says(OK), tls=context) as port:
        with pytest.raises(EgressFailed) as caught:
            await exchange(
                secure(authority),
                "POST",
                f"https://hooks.example:{port}/",
                {},
                b"",
                resolver=leads_to("127.0.0.1"),
            )
    assert caught.value.kind == "tls"


async def test_a_server_without_tls_or_silent_in_its_handshake_fails(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_S", 0.2)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(OK)

    for handler, kinds in ((plain, {"tls", "connect"}), (wait_for_ever, {"timeout"})):
        async with raw_server(handler) as port:
            with pytest.raises(EgressFailed) as caught:
                await exchange(secure(authority), "POST", f"https://127.0.0.1:{port}/", {}, b"")
        assert caught.value.kind in kinds


def test_there_is_no_way_to_turn_verification_off(authority: Authority, tmp_path: Path) -> None:
    context = connecting._tls(None)
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ssl.SSLError):
        connecting._tls(str(tmp_path / "empty.pem"))

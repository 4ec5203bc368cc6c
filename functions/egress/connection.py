"""From a target to a connection: look up once, vet every answer, connect to a vetted address, count what
arrives."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import certifi
import httpcore

from functions.egress.errors import EgressFailed, EgressRefused
from functions.egress.policy import Address, EgressPolicy, is_public
from functions.egress.target import Target

RESOLVE_S = 3.0
MOST_ANSWERS = 32
MOST_LOOKUPS = 256
MOST_CONNECTS = 3
CONNECT_S = 5.0
HEAD_CAP_BYTES = 32 * 1024
"""Status lines and headers, the informational ones included."""
_HEAD_READ_BYTES = 4096
_BODY_SLACK_BYTES = 256 * 1024
_OURS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "te", "upgrade"}
)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) → addresses as text; raises ``OSError`` when there are none. Another one is given in tests
only."""

_lookups = 0
_lookups_lock = threading.Lock()


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """getaddrinfo, on a thread of its own.

    The loop's shared threads are few, and a name server that does not answer would hold one for half a
    minute; and they are joined at exit, which a daemon thread is not.
    """
    global _lookups  # noqa: PLW0603
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(found: list[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def look_up() -> None:
        global _lookups  # noqa: PLW0603
        found: list[str] | OSError
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            found = [str(info[4][0]) for info in infos]
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else OSError(str(error))
        finally:
            with _lookups_lock:
                _lookups -= 1
        try:
            loop.call_soon_threadsafe(settle, found)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    with _lookups_lock:
        if _lookups >= MOST_LOOKUPS:
            raise OSError("too many look-ups are waiting for name servers")
        _lookups += 1
    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    return await answer


async def vetted_addresses(target: Target, policy: EgressPolicy, resolver: Resolver) -> list[Address]:
    """All addresses of the target, IPv4 first; raises ``EgressRefused`` if even one of them is forbidden."""
    if target.literal is not None:
        return [target.literal]
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = {ip_address(text) for text in await resolver(target.host, target.port)}
    except TimeoutError:
        raise EgressFailed("dns", f"{target.host} could not be looked up within {RESOLVE_S:g} s") from None
    except (OSError, ValueError) as error:
        raise EgressFailed("dns", f"{target.host} could not be looked up: no such host") from error
    if not found:
        raise EgressFailed("dns", f"{target.host} has no address")
    if len(found) > MOST_ANSWERS:
        raise EgressRefused("address", f"{target.host} has more than {MOST_ANSWERS} addresses")
    # Good ones beside a bad one are refused too: whoever mixes them wants something else.
    if not all(_may_call(address, target, policy) for address in found):
        raise EgressRefused("address", f"{target.host} has an address that may not be called")
    return sorted(found, key=lambda address: (address.version, int(address)))


def _may_call(address: Address, target: Target, policy: EgressPolicy) -> bool:
    if policy.denies_address(address, target.port):
        return False
    if target.trusted or policy.allows_address(address, target.port):
        return True
    return not target.allowed_only and is_public(address)


class Wire:
    """What one connection has received, and to which address it goes."""

    def __init__(self) -> None:
        self.address: str | None = None
        self.received = 0
        self.delivered = 0
        """Bytes of the body handed on; the wire may carry more around them, within reason."""
        self.in_head = True

    def count(self, size: int) -> None:
        self.received += size
        # Framing of tiny chunks is 6 bytes a byte; what is beyond that is made to keep us busy.
        cap = HEAD_CAP_BYTES if self.in_head else HEAD_CAP_BYTES + _BODY_SLACK_BYTES + 8 * self.delivered
        if self.received > cap:
            what = "headers" if self.in_head else "framing"
            raise EgressFailed("too_large", f"the answer has too many bytes of {what}", address=self.address)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream, wire: Wire) -> None:
        self._stream = stream
        self._wire = wire

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # Small steps in the head, so that its cap is not filled by the body behind it.
        data = await self._stream.read(_HEAD_READ_BYTES if self._wire.in_head else max_bytes, timeout)
        self._wire.count(len(data))
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._wire)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the vetted addresses, whatever host it is asked for."""

    def __init__(self, addresses: Sequence[Address], wire: Wire) -> None:
        self._addresses = addresses[:MOST_CONNECTS]
        self._wire = wire
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception | None = None
        for address in self._addresses:
            self._wire.address = str(address)
            try:
                stream = await self._backend.connect_tcp(
                    str(address), port, min(CONNECT_S, timeout or CONNECT_S), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._wire)
        raise failure or httpcore.ConnectError("there is no address")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("only addresses are called")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@contextmanager
def failures(wire: Wire) -> Iterator[None]:
    """Turn what the transport raises into ``EgressFailed`` with a sentence for the user."""
    try:
        yield
    except httpcore.ConnectTimeout as error:
        raise EgressFailed(
            "timeout", f"no connection within {CONNECT_S:g} s", address=wire.address
        ) from error
    except httpcore.TimeoutException as error:
        raise EgressFailed("timeout", "the server stopped answering", address=wire.address) from error
    except httpcore.ConnectError as error:
        raise _not_connected(error, wire) from error
    except httpcore.NetworkError as error:
        raise EgressFailed("closed", "the connection broke", address=wire.address) from error
    except httpcore.ProtocolError as error:
        # The text is the parser's; it may quote the server.
        raise EgressFailed(
            "protocol", f"no proper HTTP answer: {str(error)[:200]}", address=wire.address
        ) from error


def _not_connected(error: httpcore.ConnectError, wire: Wire) -> EgressFailed:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return EgressFailed(
            "tls", f"the certificate is not valid: {cause.verify_message}", address=wire.address
        )
    if isinstance(cause, ssl.SSLError):
        return EgressFailed("tls", f"TLS failed: {cause.reason or 'no agreement'}", address=wire.address)
    if isinstance(cause, OSError) and cause.strerror:
        return EgressFailed("connect", f"no connection: {cause.strerror}", address=wire.address)
    return EgressFailed("connect", "no connection: closed at once", address=wire.address)


@lru_cache(maxsize=8)
def _tls(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@asynccontextmanager
async def connected(
    policy: EgressPolicy,
    target: Target,
    addresses: Sequence[Address],
    wire: Wire,
    *,
    method: str,
    headers: Mapping[str, str],
    body: bytes,
    idle_s: float | None = None,
) -> AsyncIterator[httpcore.Response]:
    """One request on a connection of its own, up to the answer's headers; closed behind it. Raises
    ``EgressFailed``."""
    connection = httpcore.AsyncHTTPConnection(
        origin=httpcore.Origin(target.scheme.encode(), target.host.encode(), target.port),
        ssl_context=_tls(policy.ca_file) if target.scheme == "https" else None,
        network_backend=_PinnedBackend(addresses, wire),
    )
    request = httpcore.Request(
        method,
        httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path),
        headers=[
            ("Host", target.authority),
            ("Connection", "close"),
            ("Accept-Encoding", "identity"),
            *((name, value) for name, value in headers.items() if name.lower() not in _OURS),
            *([("Content-Length", str(len(body)))] if body or method not in ("GET", "HEAD") else []),
        ],
        content=body,
        extensions={
            "sni_hostname": target.host,
            "timeout": {"connect": CONNECT_S, "read": idle_s, "write": idle_s},
        },
    )
    try:
        with failures(wire):
            response = await connection.handle_async_request(request)
        wire.in_head = False
        try:
            yield response
        finally:
            await response.aclose()
    finally:
        await connection.aclose()

"""One request on one connection to a vetted address; what arrives on it is counted."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any

import certifi
import httpcore

from functions.egress.errors import EgressFailed
from functions.egress.policy import Address, EgressPolicy
from functions.egress.target import Target

MOST_CONNECTS = 3
CONNECT_S = 5.0
HEAD_CAP_BYTES = 32 * 1024
"""Status lines and headers, the informational ones included."""
_HEAD_READ_BYTES = 4096
_BODY_SLACK_BYTES = 256 * 1024
_OURS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "te", "upgrade"}
)


class Wire:
    """What one connection has received, and to which address it goes."""

    def __init__(self) -> None:
        self.address: str | None = None
        self.received = 0
        self.delivered = 0
        """Bytes of the body handed on; the wire may carry more around them, within reason."""
        self.in_head = True
        self.in_handshake = False

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
        self._wire.in_handshake = True
        stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        self._wire.in_handshake = False
        return _Stream(stream, self._wire)

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
        what = "TLS handshake" if wire.in_handshake else "connection"
        raise EgressFailed("timeout", f"no {what} within {CONNECT_S:g} s", address=wire.address) from error
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
    if wire.in_handshake:
        return EgressFailed("tls", "TLS failed: the server closed the connection", address=wire.address)
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.__cause__
    reason = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "refused"
    return EgressFailed("connect", f"no connection: {reason}", address=wire.address)


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

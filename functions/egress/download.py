"""Read a file from a named address as a stream, over redirects that are vetted like the first URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

import httpcore

from functions.egress.connection import Wire, connected, failures
from functions.egress.errors import EgressFailed
from functions.egress.exchange import lower_headers, stream_of
from functions.egress.lookup import Resolver, system_resolver, vetted_addresses
from functions.egress.policy import EgressPolicy
from functions.egress.target import check_url

REDIRECTS = 5
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Download:
    """``size`` is what the server announced, if it did; ``chunks`` are bounded by nothing but the caller."""

    url: str
    size: int | None
    content_type: str | None
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def open_download(
    policy: EgressPolicy,
    url: str,
    *,
    head_s: float = 30.0,
    idle_s: float = 30.0,
    total_s: float | None = None,
    redirects: int = REDIRECTS,
    resolver: Resolver = system_resolver,
) -> AsyncIterator[Download]:
    """GET ``url``; the body is ready to be read when this is entered.

    ``head_s`` is the time for each hop up to its headers, ``idle_s`` the longest silence in the body,
    ``total_s`` the time for all of it, the caller's work inside included. A body that ends early raises.
    Raises ``EgressRefused`` for a URL on the way that may not be called, and ``EgressFailed``; kind
    ``status`` has the server's answer in ``status``.
    """
    try:
        async with asyncio.timeout(total_s) as deadline, AsyncExitStack() as opened:
            final, response, wire = await _follow(
                opened, policy, url, head_s=head_s, idle_s=idle_s, redirects=redirects, resolver=resolver
            )
            headers = lower_headers(response)
            length = None if "transfer-encoding" in headers else headers.get("content-length")
            chunks = await opened.enter_async_context(aclosing(_chunks(response, wire)))
            yield Download(
                final, None if length is None else int(length), headers.get("content-type"), chunks
            )
    except TimeoutError:
        if not deadline.expired():
            raise  # the caller's own, from inside
        raise EgressFailed("timeout", f"the download took longer than {total_s:g} s") from None


async def _follow(
    opened: AsyncExitStack,
    policy: EgressPolicy,
    url: str,
    *,
    head_s: float,
    idle_s: float,
    redirects: int,
    resolver: Resolver,
) -> tuple[str, httpcore.Response, Wire]:
    """The first answer that is no redirect, its connection left open in ``opened``."""
    for _ in range(redirects + 1):
        target, wire, hop = check_url(url, policy), Wire(), AsyncExitStack()
        try:
            async with asyncio.timeout(head_s):
                addresses = await vetted_addresses(target, policy, resolver)
                request = connected(
                    policy, target, addresses, wire, method="GET", headers={}, body=b"", idle_s=idle_s
                )
                response = await hop.enter_async_context(request)
        except TimeoutError:
            message = f"{target.host} did not answer within {head_s:g} s"
            raise EgressFailed("timeout", message, address=wire.address) from None
        await opened.enter_async_context(hop)
        if response.status == 200:
            return target.url, response, wire
        location = lower_headers(response).get("location")
        await hop.aclose()
        if response.status not in _REDIRECT_STATUSES or not location:
            raise EgressFailed(
                "status",
                f"{target.host} answered {response.status}",
                status=response.status,
                address=wire.address,
            )
        url = urljoin(target.url, "".join(c if c.isascii() else f"%{ord(c):02X}" for c in location))
    raise EgressFailed("redirects", f"more than {redirects} redirects")


async def _chunks(response: httpcore.Response, wire: Wire) -> AsyncGenerator[bytes, None]:
    with failures(wire):
        async with aclosing(stream_of(response)) as chunks:
            async for chunk in chunks:
                wire.delivered += len(chunk)
                yield chunk

"""One small request and its whole answer within a deadline: what a callback is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import httpcore

from functions.egress.connection import Wire, connected, failures
from functions.egress.errors import EgressFailed
from functions.egress.lookup import Resolver, system_resolver, vetted_addresses
from functions.egress.policy import EgressPolicy
from functions.egress.target import check_url

BODY_CAP_BYTES = 64 * 1024
DEADLINE_S = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """``headers`` have lower-case names and the first value of each; ``body`` ends at the cap, if not
    before."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    address: str
    duration_ms: int


async def exchange(
    policy: EgressPolicy,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    deadline_s: float = DEADLINE_S,
    cap: int = BODY_CAP_BYTES,
    resolver: Resolver = system_resolver,
) -> Answer:
    """Send a request and read the answer, any status, redirects as they are.

    ``deadline_s`` covers all of it, from the look-up to the last byte of the body; what of the body is
    longer than ``cap`` is not read. Raises ``EgressRefused`` for a URL that may not be called,
    ``EgressFailed`` otherwise.
    """
    target = check_url(url, policy)
    started, wire = time.monotonic(), Wire()
    try:
        async with asyncio.timeout(deadline_s):
            addresses = await vetted_addresses(target, policy, resolver)
            async with connected(
                policy, target, addresses, wire, method=method, headers=headers, body=body
            ) as response:
                content = await _read(response, wire, cap)
    except TimeoutError:
        message = f"no whole answer within {deadline_s:g} s"
        raise EgressFailed("timeout", message, address=wire.address) from None
    duration_ms = round((time.monotonic() - started) * 1000)
    return Answer(response.status, lower_headers(response), content, wire.address or "", duration_ms)


async def _read(response: httpcore.Response, wire: Wire, cap: int) -> bytes:
    content = bytearray()
    with failures(wire):
        async with aclosing(stream_of(response)) as chunks:
            async for chunk in chunks:
                content += chunk
                wire.delivered += len(chunk)
                if len(content) >= cap:
                    break
    return bytes(content[:cap])


def stream_of(response: httpcore.Response) -> AsyncGenerator[bytes, None]:
    """The body; a generator, whatever its type says, and one that must be closed if it is left early."""
    return cast("AsyncGenerator[bytes, None]", response.aiter_stream())


def lower_headers(response: httpcore.Response) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in response.headers:
        found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found

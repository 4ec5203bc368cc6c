"""What is known of addresses when they are registered: where their names lead now. Each request looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

from functions.egress.errors import EgressFailed, EgressRefused
from functions.egress.lookup import RESOLVE_S, Resolver, system_resolver, vetted_addresses
from functions.egress.policy import EgressPolicy
from functions.egress.target import check_url


async def refused_names(
    urls: Collection[str], policy: EgressPolicy, resolver: Resolver = system_resolver
) -> dict[str, EgressRefused]:
    """Those of the URLs that lead to an address which may not be called, and why; within three seconds.

    A name that is not known, or not yet, is let through: who registers it may be about to make it.
    """
    refused: dict[str, EgressRefused] = {}

    async def look_at(url: str) -> None:
        try:
            with suppress(EgressFailed):
                await vetted_addresses(check_url(url, policy), policy, resolver)
        except EgressRefused as error:
            refused[url] = error

    with suppress(TimeoutError):
        async with asyncio.timeout(RESOLVE_S), asyncio.TaskGroup() as group:
            for url in set(urls):
                group.create_task(look_at(url))
    return refused

"""Names are looked up when they are registered, and what cannot be known yet is let through."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from functions.egress import EgressPolicy, refused_names

ADDRESSES = {
    "inside.example": ["127.0.0.1"],
    "mixed.example": ["93.184.215.14", "10.0.0.1"],
    "public.example": ["93.184.215.14"],
}


async def resolver(host: str, _port: int) -> Sequence[str]:
    if host == "hangs.example":
        await asyncio.get_running_loop().create_future()
    if host not in ADDRESSES:
        raise OSError("no such host")
    return ADDRESSES[host]


def url(name: str) -> str:
    return f"https://{name}.example/hook"


async def test_a_name_that_leads_inside_is_refused_and_a_public_or_unknown_one_is_not() -> None:
    names = ("inside", "mixed", "public", "unknown")
    refused = await refused_names([url(name) for name in names], EgressPolicy(), resolver)
    assert refused.keys() == {url("inside"), url("mixed")}


async def test_a_name_server_that_hangs_holds_up_nobody_for_long() -> None:
    async with asyncio.timeout(10):
        refused = await refused_names([url("hangs"), url("inside")], EgressPolicy(), resolver)
    assert refused.keys() == {url("inside")}


async def test_what_the_operator_allows_is_let_through() -> None:
    assert await refused_names([url("inside")], EgressPolicy(allow=("127.0.0.0/8",)), resolver) == {}

"""Everything at once: calls lost before and after they are carried out, lists that lie, locks, a full bucket."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from nodes.hetzner.provider import HetznerProvider, connect
from nodes.provider import ProviderError, RateLimited
from tests.hetzner.rules import CREATE, DELETE, LIST, Answer, Drop, Fate, Omit, later_page
from tests.hetzner.server import Emulator
from tests.nodes.hetzner.conftest import provider_of
from tests.nodes.hetzner.orders import OWNER, order_of

ORDERS = 12


def storm(cloud: Emulator) -> None:
    for effect in (
        Drop(commit=True),
        Drop(commit=False),
        Answer(500, "server_error", None, commit=True),
        Answer(503, html=True),
        Answer(504, "timeout", commit=True),
        Answer(409, "conflict"),
        Answer(429, "rate_limit_exceeded"),
    ):
        for calls in (CREATE, DELETE, LIST):
            cloud.inject(effect, **calls, times=None, chance=0.08)
    cloud.inject(Omit(lambda server: server["id"] % 3 == 0), **LIST, times=None, chance=0.1)
    cloud.inject(Answer(502, html=True), **LIST, times=None, chance=0.1, where=later_page)
    cloud.inject(Fate(locked_deletes=2), **CREATE, times=None, chance=0.3)
    cloud.inject(Fate(lingers_for=timedelta(minutes=5)), **CREATE, times=None, chance=0.3)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_in_a_storm_each_order_gets_one_server_and_each_server_goes(seed: int) -> None:
    with Emulator(seed=seed) as cloud:
        provider = provider_of(cloud)
        orders = {name: await order_of(provider, name) for name in (f"rgrid-s-{index}" for index in range(ORDERS))}
        await provider.prepare("docker-ce", frozenset({"x86"}))
        storm(cloud)
        made: dict[str, int] = {}
        for _ in range(200):
            if len(made) == ORDERS:
                break
            for name, order in orders.items():
                if name not in made and (server := await tried(cloud, provider.create(order))) is not None:
                    made[name] = server.id
                assert max(Counter(each.name for each in cloud.cloud.servers.values()).values(), default=0) <= 1
                assert len(cloud.cloud.servers) <= ORDERS
        assert made == {each.name: each.id for each in cloud.cloud.servers.values()}
        absent: Counter[int] = Counter()
        for _ in range(400):
            for server_id in made.values():
                if absent[server_id] < 2:
                    await tried(cloud, provider.delete(server_id))
            listing = await tried(cloud, provider.list_servers())
            if listing is not None and listing.complete:
                there = {each.id for each in listing.servers}
                absent = Counter({id: 0 if id in there else absent[id] + 1 for id in made.values()})
            if min(absent.values(), default=0) >= 2:
                break
            cloud.advance(timedelta(seconds=15))
        assert cloud.cloud.servers == {}
        provider.close()


async def tried(cloud: Emulator, call):  # type: ignore[no-untyped-def]
    """What the call returns; None if it failed, after waiting as long as it says."""
    try:
        return await call
    except RateLimited as error:
        cloud.advance(max(timedelta(), error.until - cloud.now))
    except ProviderError:
        cloud.advance(timedelta(seconds=2))
    return None


async def test_a_provider_on_the_real_clock_keeps_the_clouds_time() -> None:
    with Emulator(start=datetime.now(UTC) - timedelta(hours=5), speed=1) as cloud:
        provider: HetznerProvider = connect(cloud.token, owner=OWNER, endpoint=cloud.url)
        listing = await provider.list_servers()
        assert abs(listing.server_now - cloud.now) < timedelta(seconds=2)
        provider.close()

"""The scheduler's round that buys and deletes nodes, put together from the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from functions import bucket_owner
from functions.db import Connection, Pool
from functions.errors import Unavailable
from functions.sealing import Sealer
from gateway.settings import Settings, rules_of
from nodes.agent_files import AgentFiles
from nodes.autoscaler import Autoscaler
from nodes.cloud_init import UserData
from nodes.hetzner.provider import connect
from nodes.ledger import Ledger
from nodes.policy.state import Caps
from nodes.wish import Wish
from scheduler.loop import Round
from scheduler.round_records import Records, Tally
from scheduler.wakeups import Topic, Wakeups

LONGEST_S = 300
"""A round calls the cloud, for each purchase and each deletion; what it is cut short of, the next one does."""
LEAVING_S = 0.3
OWNER_CHARACTERS = 12


@asynccontextmanager
async def autoscaling(
    settings: Settings, pool: Pool, sealer: Sealer, wakeups: Wakeups, records: Records | None = None
) -> AsyncIterator[list[Round]]:
    """The round while this is open, woken by whatever becomes ready to run; none for provider `local`.

    Raises ``Unavailable``, in one line.
    """
    if settings.provider == "local":
        yield []
        return
    if settings.hcloud_token is None or settings.public_url is None:
        raise Unavailable(settings.lacks_to_rent[0])
    async with pool.acquire() as conn:
        owner = await owner_of(conn, settings)
    provider = connect(settings.hcloud_token.get_secret_value(), owner=owner, endpoint=settings.hcloud_endpoint)
    try:
        told = user_data(settings, settings.public_url)
        books = Ledger(settings.max_eur_month)
        autoscaler = Autoscaler(pool, provider, wish_of(settings, owner), sealer, user_data=told, books=books)

        async def autoscale() -> bool:
            before = provider.calls_sent
            try:
                return await autoscaler.once()
            finally:
                if records is not None:
                    records.count(Tally.CLOUD_CALLS, provider.calls_sent - before)

        rules = rules_of(settings)
        yield [
            Round(
                "autoscale",
                rules.round_s,
                autoscale,
                timeout_s=LONGEST_S,
                ticket=lambda: wakeups.ticket(Topic.READY),
                apart_s=rules.apart_s,
            )
        ]
        # Else the next one waits until it would take this one for dead.
        with suppress(Exception):
            async with asyncio.timeout(LEAVING_S):
                await autoscaler.leave()
    finally:
        provider.close()


async def owner_of(conn: Connection, settings: Settings) -> str:
    """What this deployment's servers are labelled with."""
    return settings.owner or (await bucket_owner.instance(conn)).replace("-", "")[:OWNER_CHARACTERS]


def wish_of(settings: Settings, owner: str) -> Wish:
    return Wish(
        owner=owner,
        provider=settings.provider,
        types=settings.node_types,
        locations=settings.node_locations,
        image=settings.node_image,
        ceiling=settings.max_eur_slot_hour,
        caps=Caps(settings.max_nodes, settings.max_eur_hour, settings.max_eur_slot_hour),
        rules=rules_of(settings),
        slot_memory=settings.slot_memory,
        delete_unknown=settings.delete_unknown,
    )


def user_data(settings: Settings, public_url: str) -> UserData:
    """What servers are told. Raises ``Unavailable`` if the agent was not built."""
    return UserData(
        public_url.rstrip("/"),
        AgentFiles.load(settings.agent_folder),
        enforce_floors=settings.node_enforce_floors,
        job_deny=[str(network) for network in settings.node_job_deny],
    )

"""A fleet in the small: the emulated cloud, a database, an autoscaler, and agents that are as many lines of a test."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from functions.db import Connection, Pool
from functions.errors import Unauthenticated
from functions.ids import JobId, NodeId
from nodes import fleet, registry, rented, servers
from nodes.autoscaler import Autoscaler
from nodes.hetzner.provider import HetznerProvider
from nodes.ledger import Ledger
from nodes.policy.state import Caps, Rules
from nodes.protocol import JoinRequest
from nodes.provider import NODE_LABEL, OWNER_LABEL
from nodes.rented import Rented
from nodes.wish import Wish
from scheduler import finishing
from scheduler.finishing import Report
from scheduler.reaper import Sight, reap_once
from scheduler.views import read_jobs
from tests.hetzner import goods
from tests.hetzner.server import Emulator
from tests.hetzner.things import Machine
from tests.nodes.hetzner.conftest import provider_of
from tests.nodes.watch import Watch
from tests.scheduler.factories import SEALER, SIZING, World, claim, make_job, make_world

OWNER = "test"
KINDS = goods.kinds()
A_MINUTE, AN_HOUR = timedelta(minutes=1), timedelta(hours=1)
STEP = timedelta(seconds=25)
FORGET = (
    "TRUNCATE servers, node_events, node_waits, nodes, jobs, ready_jobs, leases, outcomes, job_attempts, server_hours, "
    "reservations, receipts, usage_days CASCADE"
)

EXPIRE = """
UPDATE leases SET expires_at = now() - interval '1 second' FROM nodes
 WHERE nodes.id = leases.node_id AND nodes.state = 'gone'
"""


def user_data(node: NodeId, token: str) -> str:
    return json.dumps({"node": node.hex, "token": token})


class Machines:
    """What runs on servers: nothing but the wish to join."""

    def __init__(self) -> None:
        self.started: list[Machine] = []

    def start(self, machine: Machine) -> None:
        self.started.append(machine)

    def stop(self, machine: Machine) -> None:
        self.started = [each for each in self.started if each.server_id != machine.server_id]


def wish_of(*, nodes: int = 5, **more: Any) -> Wish:
    values: dict[str, Any] = {
        "owner": OWNER,
        "provider": "hetzner",
        "types": ("cx23", "cx33", "cpx22"),
        "locations": ("fsn1", "nbg1", "hel1"),
        "image": "docker-ce",
        "ceiling": Decimal("0.02"),
        "caps": Caps(nodes),
        "rules": Rules(),
        "slot_memory": SIZING.slot_memory,
    }
    return Wish(**values | more)


class Clouded:
    """One account with one function, jobs that do nothing, and the cloud that its nodes come from."""

    def __init__(self, cloud: Emulator, pool: Pool, world: World, machines: Machines, *, nodes: int = 5) -> None:
        self.cloud, self.pool, self.world, self.machines = cloud, pool, world, machines
        self.wish = wish_of(nodes=nodes)
        self.watch = Watch(cloud, pool, lambda: self.wish)
        cloud.on_call = self.watch
        self.provider = self.new_provider()
        self.autoscaler = self.new_autoscaler()

    def new_provider(self) -> HetznerProvider:
        return provider_of(self.cloud, owner=OWNER)

    def new_autoscaler(self, **more: Any) -> Autoscaler:
        values: dict[str, Any] = {
            "user_data": user_data, "lease": timedelta(0), "books": Ledger(), "clocks": self.clocks
        }  # fmt: skip
        return Autoscaler(self.pool, self.provider, self.wish, SEALER, **values | more)

    async def clocks(self, conn: Connection) -> tuple[datetime, datetime]:
        """As if the database went by the emulator's time."""
        return self.cloud.now, self.cloud.now

    def close(self) -> None:
        self.provider.close()

    async def submit(self, count: int = 1, **invocation: Any) -> list[JobId]:
        async with self.pool.acquire() as conn:
            return [await make_job(conn, self.world.version, **invocation) for _ in range(count)]

    async def round(self) -> None:
        while await self.autoscaler.once():
            pass
        await self.watch.check()

    async def join(self) -> None:
        """Every machine that runs joins, or has joined before, or has a token that is none."""
        async with self.pool.acquire() as conn:
            for machine in self.machines.started:
                told = json.loads(machine.user_data)
                if not told:  # not of our making
                    continue
                credential = told["node"] * 2
                slots = KINDS[machine.type].cores
                request = JoinRequest(token=told["token"], credential_sha256=credential, slots=slots, version="1")
                if await registry.standing(conn, NodeId(UUID(hex=told["node"]))) is not None:
                    with suppress(Unauthenticated):
                        await registry.join(conn, request)

    async def work(self) -> list[JobId]:
        """Every node that is ready takes what it has room for."""
        taken = []
        async with self.pool.acquire() as conn:
            for row in await rented.live(conn):
                if row.node_state == "ready" and not row.closed:
                    free = row.offer.slots - await conn.fetchval(servers.HELD, row.id)
                    if free:
                        taken += await claim(conn, row.id, self.world.account, free=free, slots=row.offer.slots)
        return [each.job_id for each in taken]

    async def finish(self) -> None:
        """Everything that runs ends well."""
        async with self.pool.acquire() as conn:
            for row in await conn.fetch("SELECT job_id, token, node_id FROM leases"):
                await finishing.finish(conn, row["node_id"], row["job_id"], Report(row["token"], "succeeded", 0))

    async def reap(self) -> int:
        """What runs on nodes that are gone is taken back: nobody renews it any more. How many jobs."""
        async with self.pool.acquire() as conn:
            await conn.execute(EXPIRE)
        return (await reap_once(self.pool, Sight(0))).requeued

    async def pass_time(self, by: timedelta, *, step: timedelta = STEP) -> None:
        """Time goes by; machines join as they come up, and the rounds go on."""
        while by > timedelta():
            self.cloud.advance(min(step, by))
            by -= step
            await self.join()
            await self.round()

    async def live(self) -> list[Rented]:
        async with self.pool.acquire() as conn:
            return await rented.live(conn)

    async def states(self) -> list[str]:
        async with self.pool.acquire() as conn:
            return [row["state"] for row in await conn.fetch("SELECT state FROM servers ORDER BY node_id")]

    async def history(self) -> list[str]:
        """What happened to nodes, in order."""
        async with self.pool.acquire() as conn:
            rows = await conn.fetch("SELECT node_id, type, detail FROM node_events ORDER BY id")
        return [f"{str(row['node_id'])[-4:]} {row['type']} {row['detail'] or ''}" for row in rows]

    @property
    def paid(self) -> tuple[int, int]:
        """Servers ever bought, and their hours, by the cloud's own bill."""
        bill = self.cloud.cloud.bill
        return sum(line.kind == "server" for line in bill.lines), bill.hours(self.cloud.now)

    @property
    def existing(self) -> list[str]:
        return [server.name for server in self.cloud.cloud.servers.values()]


async def make_clouded(
    cloud: Emulator, pool: Pool, machines: Machines, *, kind: type[Clouded] = Clouded, nodes: int = 5
) -> Clouded:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET state = 'gone', gone_at = now() WHERE id = $1", world.node)
    return kind(cloud, pool, world, machines, nodes=nodes)


def order(clouded: Clouded, name: str, node: str, *, owner: str = OWNER) -> int:
    """Somebody buys a server past the autoscaler; the server's number."""
    return clouded.cloud.cloud.foreign(name, {OWNER_LABEL: owner, NODE_LABEL: node}).id


async def waiting(clouded: Clouded, job: JobId) -> Any:
    """The job's row, with what it waits for."""
    async with clouded.pool.acquire() as conn:
        (record,) = await read_jobs(conn, clouded.world.project, [job])
        return record.row


async def problem(clouded: Clouded) -> str | None:
    """What the operator is told."""
    async with clouded.pool.acquire() as conn:
        return (await fleet.get(conn)).problem


async def fall_silent(clouded: Clouded, *nodes: NodeId, for_s: float = 180) -> None:
    since = "UPDATE nodes SET last_seen_at = now() - $2 * interval '1 second' WHERE id = ANY ($1)"
    async with clouded.pool.acquire() as conn:
        await conn.execute(since, nodes, for_s)

"""The ledger of servers: a row for each hour that they are billed for, and who pays for it. Owns ``server_hours``,
``reservations`` and ``receipts``.

An hour's row stands before the hour is paid for. It is settled, which makes its price and its receipts final, once the
hour is over (or its server is) and the server is known to have been there in it. Moments are by the cloud's clock.
Every step may be repeated, and changes nothing then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from functions.db import Connection, Pool
from functions.ids import NodeId, ProjectId
from nodes import budgets, fleet, usage
from nodes.offers import HOUR
from nodes.outlook import Left
from nodes.receipts import Ran, Receipt, price_of_hour, receipts

# What was reserved for a server that never was, or for an hour that it did not live to see.
VOID_HOURS = """
-- void_hours
DELETE FROM server_hours USING servers
 WHERE server_hours.settled_at IS NULL AND servers.node_id = server_hours.node_id AND servers.ended_at IS NOT NULL
   AND (servers.created_at IS NULL
        OR (hour > 0 AND servers.created_at + hour * interval '1 hour' >= servers.ended_at))
"""

# Hours that began without having been reserved: of servers being deleted, or of busy ones whose budget is used up.
OPEN_HOURS = """
-- open_hours
WITH begun AS (
    SELECT node_id, created_at, hourly, ipv4_hourly, payer_id, begun.hour
      FROM servers CROSS JOIN LATERAL generate_series(
        (SELECT coalesce(max(hour) + 1, 0) FROM server_hours WHERE server_hours.node_id = servers.node_id),
        greatest(ceil(extract(epoch FROM $1::timestamptz - created_at) / 3600)::int - 1, 0)) begun (hour)
     WHERE ended_at IS NULL AND created_at IS NOT NULL
), opened AS (
    INSERT INTO server_hours (node_id, hour, begins_at, server, ipv4)
    SELECT node_id, hour, created_at + hour * interval '1 hour', hourly - ipv4_hourly, ipv4_hourly FROM begun
     ORDER BY node_id, hour
    ON CONFLICT DO NOTHING
    RETURNING node_id, hour
)
INSERT INTO reservations (node_id, hour, project_id, amount)
SELECT node_id, hour, payer_id, hourly FROM opened JOIN begun USING (node_id, hour) WHERE payer_id IS NOT NULL
"""

# Of a server that turned out to be another than was ordered.
REPRICE_HOURS = """
-- reprice_hours
UPDATE server_hours SET server = servers.hourly - servers.ipv4_hourly, ipv4 = servers.ipv4_hourly FROM servers
 WHERE settled_at IS NULL AND servers.node_id = server_hours.node_id
   AND server_hours.server + server_hours.ipv4 <> servers.hourly
"""

RESERVE_HOUR = """
-- reserve_hour
INSERT INTO server_hours (node_id, hour, begins_at, server, ipv4)
SELECT node_id, greatest(round(extract(epoch FROM $2 - coalesce(created_at, planned_at)) / 3600)::int - 1, 0),
       $2 - interval '1 hour', hourly - ipv4_hourly, ipv4_hourly
  FROM servers WHERE node_id = $1
ON CONFLICT (node_id, hour) DO UPDATE SET begins_at = excluded.begins_at WHERE server_hours.settled_at IS NULL
RETURNING hour
"""

FORGET_PAYERS = """
-- forget_payers
DELETE FROM reservations USING unnest($1::uuid[], $2::int[]) h (node_id, hour)
 WHERE reservations.node_id = h.node_id AND reservations.hour = h.hour
"""

ADD_PAYERS = """
-- add_payers
INSERT INTO reservations (node_id, hour, project_id, amount)
SELECT $1, $2, * FROM unnest($3::bigint[], $4::numeric[])
"""

# Of a server that is there the last row stays open: it may turn out to have ended before that hour.
DUE_HOURS = """
-- due_hours
SELECT server_hours.node_id, server_hours.hour, servers.created_at, servers.slots, servers.hourly, servers.monthly,
       servers.ipv4_hourly, servers.ipv4_monthly
  FROM server_hours JOIN servers ON servers.node_id = server_hours.node_id
 WHERE server_hours.settled_at IS NULL AND servers.created_at IS NOT NULL
   AND (servers.ended_at IS NOT NULL
        OR (servers.created_at + (hour + 1) * interval '1 hour' <= $1
            AND least(servers.seen_at, servers.deleted_at) > servers.created_at + hour * interval '1 hour'
            AND EXISTS (SELECT 1 FROM server_hours later
                         WHERE later.node_id = server_hours.node_id AND later.hour = server_hours.hour + 1)))
 ORDER BY server_hours.node_id, server_hours.hour LIMIT $2
   FOR UPDATE OF server_hours SKIP LOCKED
"""

# One statement, so that an attempt that ends meanwhile is in one of the three. Their moments are the database's.
RAN_IN_HOURS = """
-- ran_in_hours
SELECT h.node_id, h.hour, ran.project_id, jobs.function_id, ran.job_id, ran.attempt,
       (coalesce(ran.slots, 1) * 1000 * extract(
            epoch FROM least(ran.ended_at, h.begins + interval '1 hour') - greatest(ran.leased_at, h.begins)))::bigint
            AS slot_ms
  FROM (SELECT node_id, hour, begins_at - $4::interval AS begins
          FROM unnest($1::uuid[], $2::int[], $3::timestamptz[]) hours (node_id, hour, begins_at)) h
 CROSS JOIN LATERAL (
    SELECT job_id, attempt, project_id, slots, leased_at, finished_at AS ended_at FROM outcomes
     WHERE outcomes.node_id = h.node_id AND finished_at > h.begins AND leased_at < h.begins + interval '1 hour'
    UNION ALL
    SELECT job_id, attempt, project_id, slots, leased_at, ended_at FROM job_attempts
     WHERE job_attempts.node_id = h.node_id AND ended_at > h.begins AND leased_at < h.begins + interval '1 hour'
    UNION ALL
    SELECT job_id, attempt, project_id, cls, leased_at, now() FROM leases
     WHERE leases.node_id = h.node_id AND leased_at < h.begins + interval '1 hour') ran
  JOIN jobs ON jobs.id = ran.job_id
 ORDER BY ran.job_id, ran.attempt
"""

PAYERS = """
-- payers_of_hours
SELECT reservations.node_id, reservations.hour, project_id, amount
  FROM reservations JOIN unnest($1::uuid[], $2::int[]) h (node_id, hour)
    ON reservations.node_id = h.node_id AND reservations.hour = h.hour
 ORDER BY project_id
"""

SETTLE_HOURS = """
-- settle_hours
UPDATE server_hours SET begins_at = h.begins_at, server = h.server, ipv4 = h.ipv4, settled_at = now()
  FROM unnest($1::uuid[], $2::int[], $3::timestamptz[], $4::numeric[], $5::numeric[])
    h (node_id, hour, begins_at, server, ipv4)
 WHERE server_hours.node_id = h.node_id AND server_hours.hour = h.hour
"""

ADD_RECEIPTS = """
-- add_receipts
INSERT INTO receipts (node_id, hour, project_id, function_id, job_id, attempt, slot_ms, server, ipv4, idle)
SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::uuid[], $5::uuid[], $6::int[], $7::bigint[],
                     $8::numeric[], $9::numeric[], $10::numeric[])
"""

Key = tuple[NodeId, int]


class Ledger:
    """The autoscaler's ``Books``. ``monthly`` is the most that all nodes may cost in a month."""

    def __init__(self, monthly: Decimal | None = None) -> None:
        self._monthly = monthly

    async def left(self, conn: Connection, now: datetime) -> Left:
        """What may still be spent, after every hour that has begun was written down."""
        await open_hours(conn, now)
        return await budgets.left(conn, now, monthly=self._monthly)

    async def reserved(
        self,
        conn: Connection,
        node: NodeId,
        *,
        until: datetime,
        shares: tuple[tuple[ProjectId, Decimal], ...],
        price: Decimal,
    ) -> None:
        """The hour that ends at ``until`` is to be paid for, by these if nothing runs in it. ``price`` is the server's
        own, and stands in its row."""
        hour = await conn.fetchval(RESERVE_HOUR, node, until)
        if hour is None:
            return
        await conn.execute(FORGET_PAYERS, [node], [hour])
        if shares:
            projects, amounts = zip(*shares, strict=True)
            await conn.execute(ADD_PAYERS, node, hour, projects, amounts)


async def open_hours(conn: Connection, now: datetime) -> None:
    """Write down the hours that servers have begun, and strike those that they did not come to.

    To be called while a server exists by its row: from then on it is followed to its end.
    """
    await conn.execute(VOID_HOURS)
    await conn.execute(OPEN_HOURS, now)
    await conn.execute(REPRICE_HOURS)


async def settle_once(pool: Pool, *, limit: int) -> int:
    """Settle up to ``limit`` hours, in one transaction; how many. Safe to repeat and beside others."""
    async with pool.acquire() as conn, conn.transaction():
        now, ahead = await fleet.sure_clock(conn)
        return await settle(conn, now, ahead=ahead, limit=limit)


async def settle(conn: Connection, now: datetime, *, ahead: timedelta, limit: int) -> int:
    """The same in the caller's transaction, at a moment of the cloud's clock, ``ahead`` of the database's."""
    await open_hours(conn, now)
    due = await conn.fetch(DUE_HOURS, now, limit)
    if not due:
        return 0
    keys: list[Key] = [(NodeId(row["node_id"]), row["hour"]) for row in due]
    nodes, hours = [node for node, _ in keys], [hour for _, hour in keys]
    begins = [row["created_at"] + row["hour"] * HOUR for row in due]
    ran: dict[Key, list[Ran]] = defaultdict(list)
    for row in await conn.fetch(RAN_IN_HOURS, nodes, hours, begins, ahead):
        of_attempt = (row["project_id"], row["function_id"], row["job_id"], row["attempt"], row["slot_ms"])
        ran[row["node_id"], row["hour"]].append(Ran(*of_attempt))
    payers: dict[Key, list[tuple[ProjectId, Decimal]]] = defaultdict(list)
    for row in await conn.fetch(PAYERS, nodes, hours):
        payers[row["node_id"], row["hour"]].append((row["project_id"], row["amount"]))
    prices = [_prices(row) for row in due]
    made = [
        (key, receipt)
        for key, row, (server, ipv4) in zip(keys, due, prices, strict=True)
        for receipt in receipts(server, ipv4, slots=row["slots"], ran=ran[key], payers=payers[key])
    ]
    await conn.execute(SETTLE_HOURS, nodes, hours, begins, [each for each, _ in prices], [each for _, each in prices])
    await conn.execute(FORGET_PAYERS, nodes, hours)
    await _add(conn, made)
    days = dict(zip(keys, (at.date() for at in begins), strict=True))
    await usage.charge(conn, [(days[key], receipt) for key, receipt in made])
    return len(due)


async def _add(conn: Connection, made: Sequence[tuple[Key, Receipt]]) -> None:
    of = [receipt for _, receipt in made]
    await conn.execute(
        ADD_RECEIPTS, [node for (node, _), _ in made], [hour for (_, hour), _ in made], [each.project for each in of],
        [each.function for each in of], [each.job for each in of], [each.attempt for each in of],
        [each.slot_ms for each in of], [each.server for each in of], [each.ipv4 for each in of],
        [each.idle for each in of],
    )  # fmt: skip


def _prices(row: Any) -> tuple[Decimal, Decimal]:
    """What the hour costs, the server and its address: each has a monthly limit of its own."""
    created, hour, address = row["created_at"], row["hour"], (row["ipv4_hourly"], row["ipv4_monthly"])
    server = price_of_hour(row["hourly"] - address[0], row["monthly"] - address[1], created=created, hour=hour)
    return server, price_of_hour(*address, created=created, hour=hour)

"""Servers that are rented: one row for each purchase, written before the cloud is called. Owns ``servers``.

``planned`` → ``creating`` → ``booting`` → ``ready`` → ``draining`` → ``deleting`` → ``gone``; ``failed`` if it never
was, ``lost`` if it went by itself. A step is safe to repeat and does nothing in a state that it does not lead from.
Moments are by the cloud's clock.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from functions import ids
from functions.db import Connection
from functions.ids import AccountId, NodeId, ProjectId
from functions.sealing import Sealer
from nodes import node_events, registry
from nodes.fleet import FARTHEST
from nodes.offers import HOUR, Offer
from nodes.provider import Server, Status
from nodes.rented import Rented, State

JOIN_WITHIN = timedelta(minutes=10)
"""How long a join token works after the call that asked for its server."""
OUTLAWED = "outlawed"
"""The event of a node that must not be one any more; its detail is why."""
FORGOTTEN_AFTER = timedelta(minutes=1)
"""A server that is not even being deleted so long after the cloud has agreed to that stays, and costs on."""
CALL_S = timedelta(minutes=1)
"""A call that has not come back by then never will: it is given up much earlier."""

PLAN = """
-- plan_server
INSERT INTO servers (node_id, name, provider, state, type, location, architecture, slots, memory, hourly, monthly,
                     ipv4_hourly, ipv4_monthly, account_id, payer_id, reason, token, call_after, planned_at,
                     reserved_until)
VALUES ($1, $2, $3, 'planned', $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $17, $18)
"""

ASK = """
-- ask_for_server
UPDATE servers SET state = 'creating', tries = tries + 1, asked_at = $2, call_after = $3, missing = 0
 WHERE node_id = $1 AND state IN ('planned', 'creating') AND cloud_id IS NULL
   AND (call_after <= $2 OR call_after > $2::timestamptz + $4::interval)
RETURNING token
"""

POSTPONE = """
-- postpone_server
UPDATE servers
   SET state = CASE WHEN state = 'creating' AND $3 THEN 'planned' ELSE state END, call_after = $2, error = $4
 WHERE node_id = $1 AND ended_at IS NULL
"""

# What was reserved before the hours' beginning was known moves with it.
SEEN = """
-- see_server
UPDATE servers
   SET cloud_id = $2, ipv4 = $4, seen_at = $5, missing = 0, ended_at = NULL, token = NULL,
       reserved_until = reserved_until + CASE WHEN created_at IS NULL THEN $3::timestamptz - planned_at ELSE '0' END,
       created_at = $3,
       off_since = CASE WHEN $6 THEN coalesce(off_since, $5::timestamptz) END,
       deleted_at = CASE WHEN $7 AND deleted_at < $5::timestamptz - $8::interval THEN NULL ELSE deleted_at END,
       call_after = CASE WHEN state IN ('planned', 'creating') OR ended_at IS NOT NULL THEN $5 ELSE call_after END,
       state = CASE WHEN ended_at IS NOT NULL THEN 'deleting'
                    WHEN state IN ('planned', 'creating') THEN 'booting' ELSE state END
  FROM (SELECT state AS before FROM servers WHERE node_id = $1 FOR NO KEY UPDATE) was
 WHERE node_id = $1
RETURNING before, state
"""

STILL_SEEN = """
-- see_servers_again
UPDATE servers
   SET seen_at = $1, missing = 0,
       deleted_at = CASE WHEN listed.stays AND deleted_at < $1::timestamptz - $6::interval THEN NULL ELSE deleted_at END
  FROM unnest($2::bigint[], $3::timestamptz[], $4::text[], $5::boolean[], $7::text[], $8::text[])
    listed (id, created, address, stays, type, location)
 WHERE cloud_id = listed.id AND ended_at IS NULL AND state NOT IN ('planned', 'creating') AND off_since IS NULL
   AND servers.type = listed.type AND servers.location = listed.location
   AND created_at = listed.created AND ipv4 IS NOT DISTINCT FROM listed.address
RETURNING cloud_id, node_id
"""

REPRICE = """
-- reprice_server
UPDATE servers SET type = $2, location = $3, hourly = $4, monthly = $5, ipv4_hourly = $6, ipv4_monthly = $7
 WHERE node_id = $1 AND ended_at IS NULL
"""

MISSED = """
-- miss_servers
UPDATE servers SET missing = missing + 1 WHERE node_id = ANY ($1) AND ended_at IS NULL
RETURNING node_id, missing
"""

DELETE = """
-- delete_server
UPDATE servers SET state = 'deleting', call_after = $2, error = $3, closed = true,
                   boot_failed_at = CASE WHEN $4 AND cloud_id IS NOT NULL THEN $2 ELSE boot_failed_at END
 WHERE node_id = $1 AND ended_at IS NULL AND state <> 'deleting'
RETURNING tries
"""

DELETED = """
-- server_deleted
UPDATE servers SET deleted_at = coalesce(deleted_at, $2), call_after = $3 WHERE node_id = $1 AND state = 'deleting'
"""

END = """
-- end_server
UPDATE servers SET state = $2, ended_at = $3, token = NULL, error = coalesce($4, error)
 WHERE node_id = $1 AND ended_at IS NULL
RETURNING node_id
"""

RENEW = """
-- renew_server
UPDATE servers SET reserved_until = $2 WHERE node_id = $1 AND reserved_until < $2 AND ended_at IS NULL RETURNING node_id
"""

CLOSE = """
-- close_servers
UPDATE servers SET closed = NOT closed
 WHERE ended_at IS NULL AND state NOT IN ('deleting') AND closed <> (node_id = ANY ($1))
"""

JOINED = """
-- joined_servers
UPDATE servers SET state = 'ready', ready_at = $1::timestamptz - (now() - nodes.joined_at) FROM nodes
 WHERE nodes.id = servers.node_id AND servers.state IN ('planned', 'creating', 'booting')
   AND servers.ended_at IS NULL AND nodes.state IN ('ready', 'draining')
RETURNING node_id
"""

DRAINING = """
-- draining_servers
UPDATE servers SET state = 'draining' FROM nodes
 WHERE nodes.id = servers.node_id AND servers.state = 'ready' AND servers.ended_at IS NULL AND nodes.state = 'draining'
RETURNING node_id
"""

LEFT = """
-- left_servers
SELECT servers.node_id, nodes.joined_at IS NULL AS unjoined,
       (SELECT max(detail) FROM node_events
         WHERE node_events.node_id = servers.node_id AND node_events.type = 'outlawed') AS outlawed
  FROM servers JOIN nodes ON nodes.id = servers.node_id
 WHERE servers.ended_at IS NULL AND servers.state <> 'deleting' AND nodes.state = 'gone'
"""

# Of a server that nobody knows: it is deleted like any other, and its hours are on the bill.
ADOPT = """
-- adopt_unknown_server
INSERT INTO servers (node_id, name, provider, state, type, location, architecture, slots, memory, hourly, monthly,
                     ipv4_hourly, ipv4_monthly, reason, call_after, planned_at, reserved_until, cloud_id, created_at,
                     ipv4, seen_at, closed)
VALUES ($1, $2, $3, 'deleting', $4, $5, $6, $7, $8, $9, $10, $11, $12, 'unknown', $13, $14, $14, $15, $14, $16, $13,
        true)
ON CONFLICT DO NOTHING
RETURNING node_id
"""

PLANNED = """
-- planned_servers
SELECT node_id FROM servers WHERE ended_at IS NULL AND state = 'planned'
"""

FORGET_FAILED = """
-- forget_failed_servers
DELETE FROM servers WHERE node_id = ANY (ARRAY(
    SELECT node_id FROM servers WHERE state = 'failed' AND cloud_id IS NULL AND ended_at < now() - interval '1 day'
     ORDER BY ended_at LIMIT $1))
RETURNING node_id
"""

IDLE = """
-- idle_node
SELECT 1 FROM nodes WHERE id = $1 AND state IN ('ready', 'draining') FOR UPDATE
"""

HELD = """
-- leases_of_node
SELECT count(*) FROM leases WHERE node_id = $1
"""

UNJOINED = """
-- unjoined_node
UPDATE nodes SET state = 'gone', gone_at = now(), join_hash = NULL WHERE id = $1 AND state = 'joining' RETURNING id
"""


def name_of(owner: str, node: NodeId) -> str:
    """The server's name at the cloud: a host name, and always the same for a node."""
    return f"rgrid-{owner}-{node.hex}"


async def plan(
    conn: Connection,
    sealer: Sealer,
    offer: Offer,
    *,
    owner: str,
    provider: str,
    account: AccountId | None,
    payer: ProjectId | None,
    reason: str,
    now: datetime,
) -> NodeId:
    """Decide to buy: the node and its server stand in the database before anybody asks for them."""
    node = NodeId(ids.new_uuid7())
    minted = await registry.mint_join_token(
        conn, node=node, name=name_of(owner, node), provider=provider, slots=offer.slots, account_id=account,
        ttl=JOIN_WITHIN,
    )  # fmt: skip
    await conn.execute(
        PLAN, node, name_of(owner, node), provider, *_sold(offer), account, payer, reason,
        sealer.seal(minted.token.encode()), now, now + HOUR,
    )  # fmt: skip
    bought = f"{offer.type} at {offer.location}, {offer.hourly} EUR/h, for {reason}"
    await node_events.note(conn, node, "planned", bought)
    return node


async def ask(conn: Connection, sealer: Sealer, node: NodeId, *, now: datetime) -> str | None:
    """The purchase is about to be tried: its join token; None if it is not to be tried now."""
    sealed = await conn.fetchval(ASK, node, now, now + CALL_S, FARTHEST)
    if sealed is None:
        return None
    await registry.extend_join(conn, node, JOIN_WITHIN)
    return sealer.open(sealed).decode()


async def postpone(conn: Connection, node: NodeId, *, until: datetime, error: str, undone: bool = False) -> None:
    """No call about it before ``until``; ``undone``: the purchase that was tried surely did not happen."""
    await conn.execute(POSTPONE, node, until, undone, error)


async def see(conn: Connection, node: NodeId, server: Server, *, now: datetime, off: bool) -> None:
    """It exists, says the cloud. One that had ended by its row is deleted."""
    row = await conn.fetchrow(
        SEEN, node, server.id, server.created_at, server.ipv4, now, off, _stays(server), FORGOTTEN_AFTER
    )
    if row is None or row["before"] == row["state"]:
        return
    if row["state"] == State.BOOTING:
        await node_events.note(conn, node, "booting", f"server {server.id}, {server.ipv4}")
    elif row["before"] in (State.GONE, State.LOST, State.FAILED):
        await node_events.note(conn, node, "found_again", f"server {server.id} exists after all: it is deleted")


async def see_again(conn: Connection, listed: Collection[Server], *, now: datetime) -> dict[int, NodeId]:
    """They are there, says the cloud, and on. Of those that are as their rows have them this is all: by cloud id, their
    nodes. One statement for however many."""
    rows = await conn.fetch(
        STILL_SEEN, now, [each.id for each in listed], [each.created_at for each in listed],
        [each.ipv4 for each in listed], [_stays(each) for each in listed], FORGOTTEN_AFTER,
        [each.type for each in listed], [each.location for each in listed],
    )  # fmt: skip
    return {row["cloud_id"]: NodeId(row["node_id"]) for row in rows}


async def reprice(conn: Connection, row: Rented, offer: Offer) -> None:
    """It is not what was ordered: its hours that are not settled yet cost what this does, where that is known."""
    if not offer.hourly:
        return
    prices = (offer.hourly, offer.monthly, offer.ipv4_hourly, offer.ipv4_monthly)
    await conn.execute(REPRICE, row.id, offer.type, offer.location, *prices)
    was, found = " at ".join(row.offer.key), " at ".join(offer.key)
    await node_events.note(conn, row.id, "swapped", f"{was} was ordered, and it is {found}, {offer.hourly} EUR/h")


async def miss(conn: Connection, nodes: Collection[NodeId]) -> dict[NodeId, int]:
    """A complete list has none of them: how many such lists in a row that makes for each."""
    return {row["node_id"]: row["missing"] for row in await conn.fetch(MISSED, list(nodes))}


async def delete(
    conn: Connection, node: NodeId, *, reason: str, now: datetime, failed: bool = False
) -> None:
    """Have its server deleted, whatever its node does: the node is gone from now on. ``failed``: it never joined."""
    tries = await conn.fetchval(DELETE, node, now, reason, failed)
    if tries is None:
        return
    if tries == 0:  # nobody asked for it yet
        await end(conn, node, State.FAILED, at=now, error=reason)
        return
    await registry.leave(conn, node)
    await node_events.note(conn, node, "deleting", reason)


async def drop_idle(conn: Connection, node: NodeId, *, reason: str, now: datetime) -> bool:
    """Delete a node that holds no lease; False if a job got there first.

    Its row is locked against claims, so that none comes in between.
    """
    if await conn.fetchval(IDLE, node) is None or await conn.fetchval(HELD, node):
        return False
    await delete(conn, node, reason=reason, now=now)
    return True


async def drop_unjoined(conn: Connection, node: NodeId, *, reason: str, now: datetime) -> bool:
    """Delete a node that did not join in time; False if it has joined by now."""
    if await conn.fetchval(UNJOINED, node) is None:
        return False
    await delete(conn, node, reason=reason, now=now, failed=True)
    return True


async def unplan(conn: Connection, *, reason: str, now: datetime) -> None:
    """Give up what nobody has asked the cloud for yet."""
    for row in await conn.fetch(PLANNED):
        await delete(conn, row["node_id"], reason=reason, now=now)


async def deleted(conn: Connection, node: NodeId, *, now: datetime, again: timedelta) -> None:
    """The cloud will delete it; if it is still there after ``again`` it is asked once more."""
    await conn.execute(DELETED, node, now, now + again)


async def end(conn: Connection, node: NodeId, state: State, *, at: datetime, error: str | None = None) -> None:
    """It is over: ``gone``, ``lost`` or ``failed``. ``at`` is when it ceased to cost."""
    if await conn.fetchval(END, node, state, at, error) is not None:
        await registry.leave(conn, node)
        await node_events.note(conn, node, state, error)


async def renew(conn: Connection, node: NodeId, *, until: datetime) -> bool:
    """Its hours are reserved up to ``until``; False if they were already."""
    return await conn.fetchval(RENEW, node, until) is not None


async def close(conn: Connection, nodes: Collection[NodeId]) -> None:
    """Exactly these take no new jobs for now."""
    await conn.execute(CLOSE, list(nodes))


async def follow_nodes(conn: Connection, *, now: datetime) -> None:
    """Note what nodes did by themselves: joined, were drained, left."""
    for row in await conn.fetch(JOINED, now):
        await node_events.note(conn, row["node_id"], "ready")
    for row in await conn.fetch(DRAINING):
        await node_events.note(conn, row["node_id"], "draining")
    for row in await conn.fetch(LEFT):
        reason = row["outlawed"] or ("its join token ran out" if row["unjoined"] else "the node left")
        await delete(conn, row["node_id"], reason=reason, now=now, failed=row["unjoined"])


async def adopt_unknown(
    conn: Connection, server: Server, offer: Offer, *, provider: str, now: datetime
) -> NodeId | None:
    """Give a server of ours that has no row one, by which it is deleted; None if it has one by now."""
    node = NodeId(ids.new_uuid7())
    made = await conn.fetchval(
        ADOPT, node, server.name, provider, *_sold(offer), now, server.created_at, server.id, server.ipv4
    )
    if made is not None:
        await node_events.note(conn, node, "unknown", f"server {server.id}, {server.name}, has no row: it is deleted")
    return made if made is None else NodeId(made)


async def forget_failed(conn: Connection, *, limit: int) -> int:
    """Forget purchases that came to nothing a day ago, with their nodes; how many. In one transaction."""
    nodes = [NodeId(row["node_id"]) for row in await conn.fetch(FORGET_FAILED, limit)]
    await node_events.forget(conn, nodes)
    await registry.forget(conn, nodes)
    return len(nodes)


def _stays(server: Server) -> bool:
    return server.status is not Status.DELETING


def _sold(offer: Offer) -> tuple[Any, ...]:
    return (
        offer.type, offer.location, offer.architecture, offer.slots, offer.memory, offer.hourly, offer.monthly,
        offer.ipv4_hourly, offer.ipv4_monthly,
    )  # fmt: skip

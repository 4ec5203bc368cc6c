"""Which nodes there are. Owns ``nodes``; ``servers`` gives up those that did not join, heartbeats note that one lives.

A node is minted with a one-time join token, joins with a credential of its own making, and is drained before it goes.
Tokens and credentials are kept as SHA-256 only.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from functions import ids
from functions.db import Connection
from functions.errors import Conflict, NotFound, Unauthenticated
from functions.ids import AccountId, NodeId
from nodes.protocol import JoinRequest

MINT = """
-- mint_node
INSERT INTO nodes (id, account_id, name, provider, state, slots, join_hash, join_expires_at)
VALUES ($1, $2, $3, $4, 'joining', $5, $6, now() + $7::interval)
RETURNING join_expires_at
"""

EXTEND_JOIN = """
-- extend_join
UPDATE nodes SET join_expires_at = now() + $2::interval WHERE id = $1 AND state = 'joining'
"""

JOIN = """
-- join_node
UPDATE nodes
   SET state = 'ready', credential_hash = $2, slots = $3, agent_version = $4, facts = $5::json, joined_at = now(),
       last_seen_at = now()
 WHERE join_hash = $1 AND state = 'joining' AND join_expires_at > now()
RETURNING id
"""

# Two that come at once come one after the other.
BIDDER = """
-- join_bidder
SELECT id AS node, state <> 'joining' AND credential_hash IS DISTINCT FROM $2 AS used FROM nodes
 WHERE join_hash = $1 AND state <> 'gone' AND (state <> 'joining' OR join_expires_at > now())
   FOR UPDATE
"""

AWAITED = """
-- awaited_node
SELECT id FROM nodes WHERE join_hash = $1 AND state = 'joining' AND join_expires_at > now()
"""

JOINED_BEFORE = """
-- joined_before
SELECT id FROM nodes WHERE join_hash = $1 AND credential_hash = $2 AND state <> 'gone'
"""

# A purchase that failed made no node: its row is one of many tries.
LIST_NODES = """
-- list_nodes
SELECT nodes.*, (SELECT count(*) FROM leases WHERE leases.node_id = nodes.id) AS running,
       extract(epoch FROM now() - last_seen_at)::float8 AS silent_s, servers.state AS server_state, servers.type,
       servers.location, servers.hourly, servers.created_at AS server_created_at, servers.ended_at, servers.error,
       now() + fleet.ahead AS server_now
  FROM nodes CROSS JOIN fleet LEFT JOIN servers ON servers.node_id = nodes.id
 WHERE (nodes.account_id IS NULL OR nodes.account_id = $1)
   AND (nodes.state <> 'gone' OR (gone_at > now() - interval '1 day' AND servers.state IS DISTINCT FROM 'failed'))
   AND ($2::uuid IS NULL OR nodes.id < $2)
 ORDER BY nodes.id DESC LIMIT $3
"""

GET_NODE = """
-- get_node
SELECT nodes.*, (SELECT count(*) FROM leases WHERE leases.node_id = nodes.id) AS running,
       extract(epoch FROM now() - last_seen_at)::float8 AS silent_s, servers.state AS server_state, servers.type,
       servers.location, servers.hourly, servers.created_at AS server_created_at, servers.ended_at, servers.error,
       now() + fleet.ahead AS server_now
  FROM nodes CROSS JOIN fleet LEFT JOIN servers ON servers.node_id = nodes.id
 WHERE nodes.id = $2 AND (nodes.account_id IS NULL OR nodes.account_id = $1)
"""

DRAIN = """
-- drain_node
UPDATE nodes SET state = 'draining' WHERE id = $2 AND (account_id IS NULL OR account_id = $1) AND state = 'ready'
RETURNING id
"""

NODE_STATE = """
-- node_state
SELECT state FROM nodes WHERE id = $2 AND (account_id IS NULL OR account_id = $1)
"""

LEAVE = """
-- leave_node
UPDATE nodes SET state = 'gone', gone_at = coalesce(gone_at, now()), join_hash = NULL, credential_hash = NULL
 WHERE id = $1
"""

STANDING = """
-- node_standing
SELECT nodes.state, nodes.slots, nodes.account_id, servers.node_id IS NOT NULL AS rented,
       servers.closed IS TRUE AS closed
  FROM nodes LEFT JOIN servers ON servers.node_id = nodes.id
 WHERE nodes.id = $1 AND nodes.state <> 'gone'
"""

FORGET_UNJOINED = """
-- forget_unjoined_nodes
UPDATE nodes SET state = 'gone', gone_at = now(), join_hash = NULL WHERE id = ANY (ARRAY(
    SELECT id FROM nodes WHERE state = 'joining' AND join_expires_at < now() ORDER BY id FOR UPDATE SKIP LOCKED))
"""

# Rented ones go with their servers; what holds jobs, when those were taken back.
FORGET_DRAINED = """
-- forget_drained_nodes
UPDATE nodes SET state = 'gone', gone_at = now(), join_hash = NULL, credential_hash = NULL WHERE id = ANY (ARRAY(
    SELECT id FROM nodes
     WHERE state = 'draining' AND last_seen_at < now() - $1::interval
       AND NOT EXISTS (SELECT FROM leases WHERE leases.node_id = nodes.id)
       AND NOT EXISTS (SELECT FROM servers WHERE servers.node_id = nodes.id)
     ORDER BY id FOR UPDATE SKIP LOCKED))
"""

FORGET = """
-- forget_nodes
DELETE FROM nodes WHERE id = ANY ($1) AND joined_at IS NULL
"""

POOLS = """
-- pools
SELECT pool FROM pool_clocks ORDER BY random()
"""

SILENT_FOR = timedelta(minutes=5)
"""A node that is to leave and was not heard of for so long will not say so any more."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """``token`` is shown this once."""

    node_id: NodeId
    token: str
    expires_at: datetime


async def mint_join_token(
    conn: Connection,
    *,
    name: str,
    provider: str,
    slots: int,
    account_id: AccountId | None,
    ttl: timedelta,
    node: NodeId | None = None,
) -> JoinToken:
    """Announce a node: a row, and a token that one machine can redeem once within ``ttl``."""
    node, token = node or NodeId(ids.new_uuid7()), secrets.token_urlsafe(32)
    expires_at = await conn.fetchval(MINT, node, account_id, name, provider, slots, _sha256(token), ttl)
    return JoinToken(node, token, expires_at)


async def extend_join(conn: Connection, node: NodeId, ttl: timedelta) -> None:
    """A node that has not joined may do so for ``ttl`` from now on."""
    await conn.execute(EXTEND_JOIN, node, ttl)


@dataclass(frozen=True, slots=True)
class Bidder:
    """Whom a join token is for; ``used``: another machine has joined with it."""

    node: NodeId
    used: bool


async def bidder(conn: Connection, request: JoinRequest) -> Bidder | None:
    """The node that is meant, its row locked; None if the token is unknown or too old."""
    row = await conn.fetchrow(BIDDER, _sha256(request.token), bytes.fromhex(request.credential_sha256))
    return None if row is None else Bidder(NodeId(row["node"]), row["used"])


async def awaited(conn: Connection, token: str) -> NodeId | None:
    """The node that may still join with this token."""
    found = await conn.fetchval(AWAITED, _sha256(token))
    return None if found is None else NodeId(found)


async def join(conn: Connection, request: JoinRequest) -> NodeId:
    """Redeem a join token. The same token with the same credential may be sent again: the first answer may have been
    lost. Raises ``Unauthenticated``, alike for unknown, used and expired tokens; ``Conflict`` for a credential that is
    another node's."""
    token, credential = _sha256(request.token), bytes.fromhex(request.credential_sha256)
    facts = json.dumps(request.facts)
    try:
        node = await conn.fetchval(JOIN, token, credential, request.slots, request.version, facts)
    except asyncpg.UniqueViolationError:
        raise Conflict(
            "this machine is a node already, under another join token: start it without one, or empty its folder",
            code="node_joined_before",
        ) from None
    if node is None:
        node = await conn.fetchval(JOINED_BEFORE, token, credential)
    if node is None:
        raise token_invalid()
    return NodeId(node)


def token_invalid() -> Unauthenticated:
    return Unauthenticated(
        "this join token is unknown, used or too old: make a new one with `rgrid nodes add`",
        code="join_token_invalid",
    )


async def list_nodes(
    conn: Connection, account: AccountId, *, limit: int, before: NodeId | None
) -> list[dict[str, Any]]:
    """Nodes that may serve the account, newest first; those gone for a day are left out.

    Beside its columns a row has ``running``, the number of its jobs, ``silent_s``, since when it was not heard of, and
    of a rented one what its server is.
    """
    return [dict(row) for row in await conn.fetch(LIST_NODES, account, before, limit)]


async def get(conn: Connection, account: AccountId, node: NodeId) -> dict[str, Any]:
    """One node, as ``list_nodes`` has it; raises ``NotFound``."""
    row = await conn.fetchrow(GET_NODE, account, node)
    if row is None:
        raise NotFound(f"there is no node {ids.encode(ids.NODE, node)}", code="node_not_found")
    return dict(row)


async def drain(conn: Connection, account: AccountId, node: NodeId) -> None:
    """Lease nothing more to a node. It hands back what it cannot finish and leaves. Safe to repeat."""
    if await conn.fetchval(DRAIN, account, node) is None:
        state = await conn.fetchval(NODE_STATE, account, node)
        if state is None:
            raise NotFound(f"there is no node {ids.encode(ids.NODE, node)}", code="node_not_found")
        if state != "draining":
            raise Conflict(f"the node is {state}: only a ready node can be drained", code="node_not_ready")


async def leave(conn: Connection, node: NodeId) -> None:
    """The node is going for good; its credential dies with it."""
    await conn.execute(LEAVE, node)


@dataclass(frozen=True, slots=True)
class Standing:
    """A ``rented`` node costs by the hour; one that is ``closed`` is to take no new jobs for now."""

    state: str
    slots: int
    account_id: AccountId | None
    rented: bool
    closed: bool


async def standing(conn: Connection, node: NodeId) -> Standing | None:
    """How a node stands now; None if it is gone."""
    row = await conn.fetchrow(STANDING, node)
    return None if row is None else Standing(**row)


async def pools_of(conn: Connection, node: Standing) -> list[int]:
    """The accounts whose jobs a node takes; a shared node tries them in another order each time."""
    if node.account_id is not None:
        return [node.account_id]
    return [row["pool"] for row in await conn.fetch(POOLS)]


async def forget(conn: Connection, nodes: Collection[NodeId]) -> None:
    """Delete nodes that never joined: nothing can refer to them."""
    await conn.execute(FORGET, list(nodes))


async def forget_unjoined(conn: Connection) -> None:
    """Nodes whose join token ran out before anybody redeemed it are gone. Safe to repeat."""
    await conn.execute(FORGET_UNJOINED)


async def forget_drained(conn: Connection) -> None:
    """Machines of one's own that were to leave and have died instead are gone; their credentials die with them. Safe to
    repeat."""
    await conn.execute(FORGET_DRAINED, SILENT_FOR)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()

"""Which nodes there are. Owns ``nodes``.

A node is minted with a one-time join token, joins with a credential of its own making, and is drained before it goes.
Tokens and credentials are kept as SHA-256 only.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

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

JOIN = """
-- join_node
UPDATE nodes
   SET state = 'ready', credential_hash = $2, slots = $3, agent_version = $4, facts = $5::json, joined_at = now(),
       last_seen_at = now()
 WHERE join_hash = $1 AND state = 'joining' AND join_expires_at > now()
RETURNING id
"""

JOINED_BEFORE = """
-- joined_before
SELECT id FROM nodes WHERE join_hash = $1 AND credential_hash = $2 AND state <> 'gone'
"""

LIST_NODES = """
-- list_nodes
SELECT nodes.*, (SELECT count(*) FROM leases WHERE leases.node_id = nodes.id) AS running FROM nodes
 WHERE (nodes.account_id IS NULL OR nodes.account_id = $1)
   AND (state <> 'gone' OR gone_at > now() - interval '1 day') AND ($2::uuid IS NULL OR nodes.id < $2)
 ORDER BY nodes.id DESC LIMIT $3
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
UPDATE nodes SET state = 'gone', gone_at = now(), join_hash = NULL, credential_hash = NULL WHERE id = $1
"""

SEEN = """
-- node_seen
UPDATE nodes SET last_seen_at = now() WHERE id = $1 AND state <> 'gone' RETURNING state, slots, account_id
"""

POOLS = """
-- pools
SELECT pool FROM pool_clocks ORDER BY random()
"""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """``token`` is shown this once."""

    node_id: NodeId
    token: str
    expires_at: datetime


async def mint_join_token(
    conn: Connection, *, name: str, provider: str, slots: int, account_id: AccountId | None, ttl: timedelta
) -> JoinToken:
    """Announce a node: a row, and a token that one machine can redeem once within ``ttl``."""
    node, token = NodeId(ids.new_uuid7()), secrets.token_urlsafe(32)
    expires_at = await conn.fetchval(MINT, node, account_id, name, provider, slots, _sha256(token), ttl)
    return JoinToken(node, token, expires_at)


async def join(conn: Connection, request: JoinRequest) -> NodeId:
    """Redeem a join token. The same token with the same credential may be sent again: the first answer may have been
    lost. Raises ``Unauthenticated``, alike for unknown, used and expired tokens."""
    token, credential = _sha256(request.token), bytes.fromhex(request.credential_sha256)
    facts = json.dumps(request.facts)
    node = await conn.fetchval(JOIN, token, credential, request.slots, request.version, facts)
    if node is None:
        node = await conn.fetchval(JOINED_BEFORE, token, credential)
    if node is None:
        raise Unauthenticated(
            "this join token is unknown, used or too old: make a new one with `rgrid nodes add`",
            code="join_token_invalid",
        )
    return NodeId(node)


async def list_nodes(
    conn: Connection, account: AccountId, *, limit: int, before: NodeId | None
) -> list[dict[str, Any]]:
    """Nodes that may serve the account, newest first, with how many jobs each runs; those gone for a day are left out."""
    return [dict(row) for row in await conn.fetch(LIST_NODES, account, before, limit)]


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
class Seen:
    state: str
    slots: int
    account_id: AccountId | None


async def seen(conn: Connection, node: NodeId) -> Seen | None:
    """Note that the node is alive; None if it is gone."""
    row = await conn.fetchrow(SEEN, node)
    return None if row is None else Seen(**row)


async def pools_of(conn: Connection, node: Seen) -> list[int]:
    """The accounts whose jobs a node takes; a shared node tries them in another order each time."""
    if node.account_id is not None:
        return [node.account_id]
    return [row["pool"] for row in await conn.fetch(POOLS)]


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()

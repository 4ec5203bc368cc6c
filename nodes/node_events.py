"""What happened to nodes, for whoever operates them. Owns ``node_events``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from functions.db import Connection
from functions.ids import AccountId, NodeId

NOTE = """
-- note_node_event
INSERT INTO node_events (node_id, type, detail) VALUES ($1, $2, $3)
"""

NOTE_FEW = """
-- note_few_node_events
INSERT INTO node_events (node_id, type, detail)
SELECT $1, $2, $3 WHERE (SELECT count(*) FROM node_events WHERE node_id = $1 AND type = $2) < $4
"""

LIST = """
-- node_events
SELECT at, type, detail FROM node_events JOIN nodes ON nodes.id = node_events.node_id
 WHERE node_id = $2 AND (nodes.account_id IS NULL OR nodes.account_id = $1) ORDER BY node_events.id LIMIT $3
"""


FORGET = """
-- forget_node_events
DELETE FROM node_events WHERE node_id = ANY ($1)
"""


async def note(conn: Connection, node: NodeId, type: str, detail: str | None = None) -> None:
    """In the transaction of what it tells of; ``detail`` is a plain sentence without secrets."""
    await conn.execute(NOTE, node, type, detail)


async def note_few(conn: Connection, node: NodeId, type: str, detail: str, *, most: int) -> None:
    """As ``note``, but only the first ``most`` of a type: for what machines may cause as often as they like."""
    await conn.execute(NOTE_FEW, node, type, detail, most)


async def forget(conn: Connection, nodes: Collection[NodeId]) -> None:
    """Of nodes that are forgotten themselves."""
    await conn.execute(FORGET, list(nodes))


async def of_node(conn: Connection, account: AccountId, node: NodeId, *, limit: int) -> list[dict[str, Any]]:
    """Events of a node that may serve the account, the oldest first: ``at``, ``type``, ``detail``."""
    return [dict(row) for row in await conn.fetch(LIST, account, node, limit)]

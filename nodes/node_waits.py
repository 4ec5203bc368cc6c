"""Why queued jobs wait for a node, and until when: what the last round of the policy said. Owns ``node_waits``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from functions import ids
from functions.db import Connection
from functions.ids import NodeId
from nodes.policy.decision import Wait

FORGET = """
-- forget_node_waits
DELETE FROM node_waits
"""

STORE = """
-- store_node_waits
INSERT INTO node_waits (project_id, lane, cls, reason, eta)
SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::smallint[], $4::text[], $5::timestamptz[])
"""


async def store(conn: Connection, waits: Iterable[Wait], planned: Sequence[NodeId], *, ahead: timedelta) -> None:
    """Replace what the round before said. ``planned`` are the nodes of this round's purchases, in their order;
    ``ahead`` is how much the policy's clock is ahead of the database's."""
    first: dict[tuple[int, int, int], Wait] = {}
    for wait in sorted(waits, key=lambda wait: float("inf") if wait.eta is None else wait.eta):
        first.setdefault((wait.project, int(wait.paid), wait.slots), wait)
    await conn.execute(FORGET)
    if first:
        etas = [None if wait.eta is None else datetime.fromtimestamp(wait.eta, UTC) - ahead for wait in first.values()]
        projects, lanes, sizes = zip(*first, strict=True)
        await conn.execute(STORE, projects, lanes, sizes, [said(wait, planned) for wait in first.values()], etas)


def said(wait: Wait, planned: Sequence[NodeId] = ()) -> str:
    """As a job shows it."""
    if wait.purchase is not None:
        return f"{wait.reason} {ids.encode(ids.NODE, planned[wait.purchase])}"
    following = wait.next_offer
    return wait.reason if following is None else f"{wait.reason}, then {following.type}@{following.location}"

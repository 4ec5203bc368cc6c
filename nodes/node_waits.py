"""Why queued jobs wait for a node, and until when: what the last round of the policy said. Owns ``node_waits``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from functions.db import Connection
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


async def store(conn: Connection, waits: Iterable[Wait], *, ahead: timedelta) -> None:
    """Replace what the round before said. ``ahead`` is how much the policy's clock is ahead of the database's."""
    first: dict[tuple[int, int, int], Wait] = {}
    for wait in sorted(waits, key=lambda wait: float("inf") if wait.eta is None else wait.eta):
        first.setdefault((wait.project, int(wait.paid), wait.slots), wait)
    await conn.execute(FORGET)
    if first:
        etas = [None if wait.eta is None else datetime.fromtimestamp(wait.eta, UTC) - ahead for wait in first.values()]
        projects, lanes, sizes = zip(*first, strict=True)
        await conn.execute(STORE, projects, lanes, sizes, [said(wait) for wait in first.values()], etas)


def said(wait: Wait) -> str:
    """As a job shows it."""
    following = wait.next_offer
    return wait.reason if following is None else f"{wait.reason}, then {following.type}@{following.location}"

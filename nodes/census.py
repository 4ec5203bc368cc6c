"""How many nodes and servers there are, what they cost and what stands in the way, over all accounts.

For whoever watches the instance, not for decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from functions.db import Connection
from nodes import budgets, fleet, rented
from nodes.rented import State

NODES = """
-- count_nodes
SELECT provider, CASE WHEN state <> 'joining' AND last_seen_at < now() - $1::interval THEN 'silent' ELSE state END
           AS state, count(*) AS nodes
  FROM nodes WHERE state <> 'gone' GROUP BY 1, 2
"""

SERVERS = """
-- count_servers
SELECT state, count(*) AS servers, sum(hourly) AS hourly FROM servers WHERE ended_at IS NULL GROUP BY state
"""

OURS = "local"
PERCENTS = (80, 100)
NODE_STATES = ("joining", "ready", "draining", "silent")
LIVE = tuple(state for state in State if state not in (State.GONE, State.LOST, State.FAILED))


@dataclass(frozen=True, slots=True)
class Census:
    """``nodes`` by provider and state, ``servers`` by state. EUR net: ``hourly`` is what counts against the cap, also
    servers that are gone before the end of the hour that is paid for. ``alarms``: kinds of what the operator must know.
    Moments are by the database's clock."""

    nodes: Mapping[tuple[str, str], int]
    servers: Mapping[str, int]
    hourly: Decimal
    month: Decimal
    over: Mapping[int, int]
    """Projects that used so many per cent of their budget, or more."""
    listed: int
    unknown: int
    account_limit: int | None
    frozen: bool
    alarms: frozenset[str]
    reconciled_at: datetime | None
    round_at: datetime | None


async def read(conn: Connection, *, provider: str, lease: timedelta) -> Census:
    """``provider`` is where nodes are rented, if anywhere: what there is none of has a 0. A node that was not heard of
    for a ``lease`` is `silent`, as the API shows it."""
    nodes = await conn.fetch(NODES, lease)
    rows = await conn.fetch(SERVERS)
    state = await fleet.get(conn)
    cloud_now, _ = await fleet.clock(conn)
    gone = await rented.sunk(conn, now=cloud_now)
    now = datetime.now(UTC)
    counted = {(each, of): 0 for each in (OURS, provider) for of in NODE_STATES}
    return Census(
        nodes=counted | {(row["provider"], row["state"]): row["nodes"] for row in nodes},
        servers=dict.fromkeys(LIVE, 0) | {row["state"]: row["servers"] for row in rows},
        hourly=sum((row["hourly"] for row in rows), gone),
        month=await budgets.spent(conn, now),
        over=await budgets.over(conn, now, PERCENTS),
        listed=state.listed,
        unknown=state.unknown,
        account_limit=state.limit(cloud_now),
        frozen=state.frozen(cloud_now) is not None,
        alarms=frozenset(state.alarms),
        reconciled_at=state.reconciled_at,
        round_at=state.told_at,
    )

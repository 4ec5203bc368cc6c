"""Servers that are rented, as their rows have them: see ``servers``, which alone writes these."""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass, fields, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from operator import itemgetter
from typing import Any

from functions.db import Connection
from functions.ids import AccountId, NodeId, ProjectId
from nodes.fleet import FARTHEST
from nodes.offers import Offer

LIVE = """
-- live_servers
SELECT node_id, servers.name, servers.state, type, location, architecture, servers.slots, memory, hourly, monthly,
       ipv4_hourly, ipv4_monthly, servers.account_id, payer_id, tries, asked_at, call_after, planned_at, cloud_id,
       servers.created_at, ipv4, seen_at, missing, off_since, reserved_until, closed, deleted_at, ended_at, error,
       nodes.state AS node_state, nodes.slots AS node_slots,
       extract(epoch FROM now() - nodes.last_seen_at)::float8 AS silent_s
  FROM servers LEFT JOIN nodes ON nodes.id = servers.node_id
 WHERE ended_at IS NULL ORDER BY node_id
"""

LIVE_IDS = """
-- live_ids
SELECT node_id FROM servers WHERE ended_at IS NULL
"""

AMONG = """
-- servers_among
SELECT servers.*, nodes.state AS node_state, nodes.slots AS node_slots,
       extract(epoch FROM now() - nodes.last_seen_at)::float8 AS silent_s
  FROM servers LEFT JOIN nodes ON nodes.id = servers.node_id
 WHERE servers.node_id = ANY ($1) ORDER BY servers.node_id
"""

DUE = """
-- due_servers
SELECT servers.*, nodes.state AS node_state, nodes.slots AS node_slots,
       extract(epoch FROM now() - nodes.last_seen_at)::float8 AS silent_s
  FROM servers LEFT JOIN nodes ON nodes.id = servers.node_id
 WHERE ended_at IS NULL AND servers.state IN ('planned', 'deleting')
   AND (call_after <= $1 OR call_after > $1::timestamptz + $2::interval)
 ORDER BY call_after, node_id
"""

ANY_LIVE = """
-- any_live_server
SELECT EXISTS (SELECT 1 FROM servers WHERE ended_at IS NULL)
"""

SERVING = """
-- serving_servers
SELECT servers.*, nodes.state AS node_state, nodes.slots AS node_slots,
       extract(epoch FROM now() - nodes.last_seen_at)::float8 AS silent_s
  FROM servers JOIN nodes ON nodes.id = servers.node_id
 WHERE servers.ended_at IS NULL AND servers.state IN ('booting', 'ready') AND nodes.state = 'ready'
   AND (servers.account_id IS NULL OR servers.account_id = ANY ($1))
 ORDER BY servers.node_id
"""

NAMED = """
-- named_servers
SELECT servers.*, nodes.state AS node_state, nodes.slots AS node_slots,
       extract(epoch FROM now() - nodes.last_seen_at)::float8 AS silent_s
  FROM servers LEFT JOIN nodes ON nodes.id = servers.node_id
 WHERE servers.name = ANY ($1)
"""

GET = """
-- get_server
SELECT servers.*, nodes.state AS node_state, nodes.slots AS node_slots,
       extract(epoch FROM now() - nodes.last_seen_at)::float8 AS silent_s
  FROM servers LEFT JOIN nodes ON nodes.id = servers.node_id
 WHERE servers.node_id = $1
"""

SUNK = """
-- sunk_hours
SELECT coalesce(sum(hourly), 0) FROM servers
 WHERE ended_at BETWEEN $1::timestamptz - interval '1 hour' AND $1::timestamptz + interval '1 hour'
   AND created_at IS NOT NULL
   AND created_at + greatest(ceil(extract(epoch FROM ended_at - created_at) / 3600), 1) * interval '1 hour' > $1
"""


class State(StrEnum):
    PLANNED = "planned"
    CREATING = "creating"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    DELETING = "deleting"
    GONE = "gone"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Rented:
    """A row; ``node_state``, ``node_slots`` and ``silent_s`` are of its node, None if there is none or it was never
    heard of. A machine may offer fewer slots than its type has."""

    id: NodeId
    name: str
    state: State
    offer: Offer
    account: AccountId | None
    payer: ProjectId | None
    tries: int
    asked_at: datetime | None
    call_after: datetime
    planned_at: datetime
    cloud_id: int | None
    created_at: datetime | None
    ipv4: str | None
    seen_at: datetime | None
    missing: int
    off_since: datetime | None
    reserved_until: datetime
    closed: bool
    deleted_at: datetime | None
    ended_at: datetime | None
    error: str | None
    node_state: str | None
    node_slots: int | None
    silent_s: float | None

    @property
    def hours_from(self) -> datetime:
        """From when its paid hours are counted; before the cloud has said, from the decision to buy it."""
        return self.created_at or self.planned_at


async def live(conn: Connection) -> list[Rented]:
    """All that exist or may exist, the oldest first."""
    return [_rented(row) for row in await conn.fetch(LIVE)]


async def others(conn: Connection, nodes: Set[NodeId]) -> list[Rented]:
    """As ``live``, without these."""
    found = {row["node_id"] for row in await conn.fetch(LIVE_IDS)} - nodes
    return [_rented(row) for row in await conn.fetch(AMONG, list(found))] if found else []


async def due(conn: Connection, *, now: datetime) -> list[Rented]:
    """Those that the cloud is to be called about now, the longest due first."""
    return [_rented(row) for row in await conn.fetch(DUE, now, FARTHEST)]


async def any_live(conn: Connection) -> bool:
    """Whether there is one that exists or may exist."""
    return bool(await conn.fetchval(ANY_LIVE))


async def serving(conn: Connection, accounts: Collection[int]) -> list[Rented]:
    """Those that are ready for jobs of the accounts; one that joined just now is."""
    found = [_rented(row) for row in await conn.fetch(SERVING, list(accounts))]
    return [replace(row, state=State.READY) for row in found]


async def named(conn: Connection, names: Collection[str]) -> dict[str, Rented]:
    """Rows by the server's name, ended ones too."""
    return {row["name"]: _rented(row) for row in await conn.fetch(NAMED, list(names))}


async def get(conn: Connection, node: NodeId) -> Rented | None:
    """The server of a node; None if the node is not rented."""
    row = await conn.fetchrow(GET, node)
    return None if row is None else _rented(row)


async def sunk(conn: Connection, *, now: datetime) -> Decimal:
    """EUR per hour of those that are gone, in an hour of theirs that is not over."""
    found: Decimal = await conn.fetchval(SUNK, now)
    return found


_STATES = {state.value: state for state in State}
_COLUMNS = {"account": "account_id", "payer": "payer_id"}
_REST = itemgetter(*(_COLUMNS.get(field.name, field.name) for field in fields(Rented)[4:]))


def _rented(row: Any) -> Rented:
    """Hundreds of them in a round."""
    offer = Offer(
        row["type"], row["location"], row["slots"], row["memory"], row["hourly"], row["monthly"],
        architecture=row["architecture"], ipv4_hourly=row["ipv4_hourly"], ipv4_monthly=row["ipv4_monthly"],
    )  # fmt: skip
    return Rented(NodeId(row["node_id"]), row["name"], _STATES[row["state"]], offer, *_REST(row))

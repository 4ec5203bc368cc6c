"""What the cloud lists against what our rows say, both ways: a server without a row, a row without a server.

That a server is missing is believed only if two complete lists in a row say so, and its node says nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from functions.db import Connection
from nodes import fleet, rented, servers
from nodes.fleet import FARTHEST
from nodes.offers import NOTHING, Catalogue, Offer
from nodes.provider import NODE_LABEL, Listing, Server, Status
from nodes.rented import Rented, State
from nodes.servers import CALL_S

TWICE = 2
"""Complete lists in a row that must miss a server."""
TRIES = 3
"""Calls for one purchase whose outcome nobody knows, before it is given up."""
GRACE = timedelta(minutes=2)
"""A server without a row is left alone while it is so young."""
SPOKE_WITHIN = timedelta(minutes=1)
OFF_FOR = timedelta(minutes=1)
"""While one is created it is `off` for seconds."""


@dataclass(frozen=True, slots=True)
class Found:
    """``dead`` are switched off and are to be deleted; ``alarm`` is what the operator must know, if anything. ``left``
    is what those cost that still have no row."""

    servers: int
    left: tuple[Offer, ...] = ()
    dead: tuple[Rented, ...] = ()
    alarm: str | None = None


async def reconcile(
    conn: Connection,
    listing: Listing,
    *,
    began: datetime,
    provider: str,
    catalogue: Catalogue | None,
    many: bool,
) -> Found:
    """Bring the rows up to what the cloud says. ``began`` is when the list was asked for, by the cloud's clock.

    Servers without a row get one and are deleted. If there are more of them than two, or three of ten, that is left to
    the operator, who then allows ``many``: it is more likely that our database is the wrong one.
    """
    now = listing.server_now
    on = [each for each in listing.servers if each.status is not Status.OFF]
    same = await servers.see_again(conn, on, now=now)
    changed = [each for each in listing.servers if each.id not in same]
    live = await rented.others(conn, {*same.values()})
    rows = {row.name: row for row in live}
    ids = {row.cloud_id for row in live}
    strange = [each.name for each in changed if each.name not in rows and each.id not in ids]
    rows |= await rented.named(conn, strange)
    seen, unknown = _matched(changed, rows, {each.id for each in listing.servers})
    for row, server in seen:
        await servers.see(conn, row.id, server, now=now, off=server.status is Status.OFF)
        if row.offer.key != (server.type, server.location):
            await servers.reprice(conn, row, _offer_of(server, catalogue))
    if listing.complete:
        there = {row.id for row, _ in seen}
        await _miss(conn, [row for row in live if row.id not in there and _should_be_listed(row, began)], now)
    old = [each for each in unknown if abs(now - each.created_at) >= GRACE]
    alarm = None
    left, twins = {each.id: _offer_of(each, catalogue) for each in unknown}, []
    if len(old) > max(2, 0.3 * len(listing.servers)) and not many:
        alarm = (
            f"{len(old)} servers have this deployment's label and are not in its database, as {old[0].name}: delete "
            "them, or set RGRID_DELETE_UNKNOWN=true for a while if this is the right database"
        )
    else:
        for server in old:
            if await servers.adopt_unknown(conn, server, left[server.id], provider=provider, now=now) is None:
                twins.append(server.name)
            else:
                del left[server.id]
    if twins:
        alarm = f"{', '.join(twins)} has this deployment's label and a name that was another server's: delete it"
    if listing.complete:
        await fleet.listed(conn, len(listing.servers), len(unknown), at=now)
    blocked = [server.name for server in listing.servers if server.blocked]
    if blocked and alarm is None:
        alarm = f"the cloud has blocked the address of {', '.join(blocked)}: look into its messages to you"
    dead = tuple(row for row, server in seen if _is_dead(row, server, now))
    return Found(len(listing.servers), tuple(left.values()), dead, alarm)


def _matched(
    found: Sequence[Server], rows: dict[str, Rented], listed: Set[int]
) -> tuple[list[tuple[Rented, Server]], list[Server]]:
    """Servers with their rows, and those without one. ``listed`` has the ids of all that are there."""
    # Anybody may rename a server: its id is its own.
    by_id = {row.cloud_id: row for row in rows.values() if row.cloud_id is not None}
    seen: list[tuple[Rented, Server]] = []
    unknown: list[Server] = []
    for server in found:
        row = by_id.get(server.id) or rows.get(server.name)
        # By its label a row is that of the server, unless it has another one that is there, too.
        ours = row is not None and (row.cloud_id == server.id or server.labels.get(NODE_LABEL) == row.id.hex)
        if row is not None and ours and (row.cloud_id in (None, server.id) or row.cloud_id not in listed):
            seen.append((row, server))
        else:
            unknown.append(server)
    return seen, unknown


def _is_dead(row: Rented, server: Server, now: datetime) -> bool:
    off = server.status is Status.OFF and row.off_since is not None and now - row.off_since >= OFF_FOR
    return off and row.state is not State.DELETING and not _speaks(row)


def _should_be_listed(row: Rented, began: datetime) -> bool:
    """Whether the list was asked for after every call that may have created it had come to its end."""
    if row.cloud_id is not None:
        return True
    if row.asked_at is None:
        return False
    over = row.call_after if row.state is State.CREATING else row.asked_at + CALL_S
    return over <= began or over > began + FARTHEST


def _speaks(row: Rented) -> bool:
    """Its node was heard of just now: then it is the lists that are wrong."""
    lives = row.node_state in ("ready", "draining")
    return lives and row.silent_s is not None and row.silent_s < SPOKE_WITHIN.total_seconds()


async def _miss(conn: Connection, rows: list[Rented], now: datetime) -> None:
    times = await servers.miss(conn, [row.id for row in rows])
    for row in rows:
        if times.get(row.id, 0) < TWICE or _speaks(row):
            continue
        if row.cloud_id is None and row.state is State.CREATING and row.tries < TRIES:
            await servers.postpone(conn, row.id, until=now, error="it was not created after all", undone=True)
        elif row.cloud_id is None:
            await servers.end(conn, row.id, State.FAILED, at=now, error=row.error or "it was not created")
        elif row.state is State.DELETING:
            await servers.end(conn, row.id, State.GONE, at=row.deleted_at or row.seen_at or now)
        else:
            said = "the cloud does not list it any more, and nobody deleted it"
            await servers.end(conn, row.id, State.LOST, at=row.seen_at or now, error=said)


def _offer_of(server: Server, catalogue: Catalogue | None) -> Offer:
    """What it costs, by today's list; nothing if that does not have it."""
    found = None if catalogue is None else catalogue.find(server.type, server.location)
    if found is None:
        return Offer(server.type, server.location, 1, 0, NOTHING, NOTHING)
    if server.ipv4 is not None:
        return found
    hourly, monthly = found.hourly - found.ipv4_hourly, found.monthly - found.ipv4_monthly
    return replace(found, hourly=hourly, monthly=monthly, ipv4_hourly=NOTHING, ipv4_monthly=NOTHING)

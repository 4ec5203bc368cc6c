"""What a purchase that failed means for its row, and for what is bought next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from functions.db import Connection
from nodes import fleet, rented, servers
from nodes.provider import (
    AccountLimit,
    NameTaken,
    OfferRefused,
    OutOfStock,
    ProviderError,
    RateLimited,
    Refused,
    Uncertain,
)
from nodes.rented import Rented, State

FREEZE_FOR = timedelta(minutes=10)
"""No purchases after the account's limit was met: only its holder can raise it."""
LIMIT_FOR = timedelta(hours=1)
REFUSED_FOR = timedelta(minutes=5)
SOON, LATER = timedelta(seconds=10), timedelta(minutes=2)
"""When a call that came to nothing is repeated: the second one, and any."""


@dataclass(frozen=True, slots=True)
class Failure:
    """``again``: decide anew at once, something else may be had. ``alarm`` is for the operator; it is of
    this offer alone, and over at ``until``, if that is given."""

    again: bool = False
    alarm: str | None = None
    until: datetime | None = None


async def not_bought(conn: Connection, row: Rented, error: ProviderError, *, now: datetime) -> Failure:
    """Store what became of it."""
    why = error.message
    if isinstance(error, Uncertain):
        # It may exist: the next lists tell. It is not asked for again before.
        await servers.postpone(conn, row.id, until=now, error=why)
    elif isinstance(error, RateLimited):
        await servers.postpone(conn, row.id, until=error.until, error=why, undone=True)
    elif isinstance(error, OutOfStock | NameTaken):
        await servers.end(conn, row.id, State.FAILED, at=now, error=why)
        return Failure(again=True)
    elif isinstance(error, OfferRefused):
        await servers.end(conn, row.id, State.FAILED, at=now, error=why)
        return Failure(again=True, alarm=why, until=error.again_at)
    elif isinstance(error, AccountLimit):
        await servers.end(conn, row.id, State.FAILED, at=now, error=why)
        await fleet.freeze(conn, until=now + FREEZE_FOR)
        # Those that were asked for with it may be there by now.
        live = await rented.live(conn)
        there = [each for each in live if each.cloud_id is not None or each.state is State.CREATING]
        await fleet.limit(conn, len(there), until=now + LIMIT_FOR)
        return Failure(alarm=why)
    elif isinstance(error, Refused):
        await servers.end(conn, row.id, State.FAILED, at=now, error=why)
        await fleet.freeze(conn, until=now + REFUSED_FOR)
        return Failure(alarm=why)
    else:
        until = now + min(SOON * 2 ** min(row.tries, 10), LATER)
        await servers.postpone(conn, row.id, until=until, error=why, undone=True)
    return Failure()

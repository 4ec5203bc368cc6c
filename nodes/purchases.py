"""What a purchase that failed means for its row, and for what is bought next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from functions.db import Connection
from nodes import fleet, servers
from nodes.provider import (
    AccountLimit,
    NameTaken,
    OutOfStock,
    ProviderError,
    RateLimited,
    Refused,
    Uncertain,
)
from nodes.servers import Rented, State

FREEZE_FOR = timedelta(minutes=10)
"""No purchases after the account's limit was met: only its holder can raise it."""
LIMIT_FOR = timedelta(hours=1)
REFUSED_FOR = timedelta(minutes=5)
SOON = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Failure:
    """``again``: decide anew at once, something else may be had. ``alarm`` is for the operator."""

    again: bool = False
    alarm: str | None = None


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
    elif isinstance(error, AccountLimit):
        await servers.end(conn, row.id, State.FAILED, at=now, error=why)
        await fleet.freeze(conn, until=now + FREEZE_FOR)
        there = [each for each in await servers.live(conn) if each.cloud_id is not None]
        await fleet.limit(conn, len(there), until=now + LIMIT_FOR)
        return Failure(alarm=why)
    elif isinstance(error, Refused):
        await servers.end(conn, row.id, State.FAILED, at=now, error=why)
        await fleet.freeze(conn, until=now + REFUSED_FOR)
        return Failure(alarm=why)
    else:
        await servers.postpone(conn, row.id, until=now + SOON, error=why, undone=True)
    return Failure()

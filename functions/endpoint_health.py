"""Whether an endpoint is sent anything, and what its senders have to know. Owns the columns of
``callback_endpoints`` that say since when it fails, and since when and why it is disabled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from functions.db import Connection, Row
from functions.ids import EndpointId, ProjectId

DISABLE_ENDPOINT = """
-- disable_endpoint
UPDATE callback_endpoints SET disabled_at = now(), disabled_reason = $3, updated_at = now()
 WHERE project_id = $1 AND id = $2 AND disabled_at IS NULL
RETURNING id
"""

# By the row as it is now: it may have been given another address meanwhile, or have taken another message.
DISABLE_BY_ANSWER = """
-- disable_endpoint_by_answer
UPDATE callback_endpoints SET disabled_at = now(), disabled_reason = $4, updated_at = now()
 WHERE project_id = $1 AND id = $2 AND url = $3 AND disabled_at IS NULL
   AND ($5::interval IS NULL OR failing_since <= now() - $5::interval)
RETURNING id
"""

READ_DISABLED = """
-- read_disabled_endpoint
SELECT e.url, functions.name AS function, e.failing_since, e.disabled_at, e.disabled_reason
  FROM callback_endpoints e LEFT JOIN functions ON functions.id = e.function_id
 WHERE e.project_id = $1 AND e.id = $2
"""

ENABLE_ENDPOINT = """
-- enable_endpoint
UPDATE callback_endpoints SET disabled_at = NULL, disabled_reason = NULL, failing_since = NULL, updated_at = now()
 WHERE project_id = $1 AND id = $2 AND disabled_at IS NOT NULL
"""

NOTE_TAKEN = """
-- note_taken_by_endpoint
UPDATE callback_endpoints SET failing_since = NULL WHERE id = $1 AND failing_since IS NOT NULL
"""

NOTE_FAILED = """
-- note_failed_of_endpoint
UPDATE callback_endpoints
   SET failed_at = now(), failing_since = CASE WHEN coalesce(failed_at, failing_since) > now() - $2::interval
                                               THEN coalesce(failing_since, now()) ELSE now() END
 WHERE id = $1 AND (failing_since IS NULL OR failed_at IS NULL OR failed_at < now() - $3::interval)
"""

FOR_SENDING = """
-- endpoints_for_sending
SELECT id, disabled_reason, failing_since, failed_at, secrets, signing_key FROM callback_endpoints
 WHERE project_id = $1 AND id = ANY ($2)
"""

STATE = """
-- state_of_endpoint
SELECT id, url, disabled_at IS NULL AS enabled, updated_at FROM callback_endpoints WHERE project_id = $1 AND id = $2
"""

STATES = """
-- states_of_endpoints
SELECT id, url, disabled_at IS NULL AS enabled, updated_at FROM callback_endpoints WHERE project_id = $1
"""

DISABLED_BY_HAND = "disabled by hand"

COUNT_DISABLED = """
-- count_disabled_endpoints
SELECT count(*) FROM callback_endpoints
 WHERE disabled_at IS NOT NULL AND disabled_reason <> $1 AND retired_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class Sendable:
    """An endpoint as its sender needs it: what signs, and whether it is sent anything at all. ``failed_at`` is about
    when it failed last, as ``note_failed`` has it."""

    id: EndpointId
    disabled_reason: str | None
    failing_since: datetime | None
    failed_at: datetime | None
    secrets: tuple[str, ...] | None
    signing_key: bytes | None


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint as another server that sends for us has to know it."""

    id: EndpointId
    url: str
    enabled: bool
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Disabled:
    """What there is to tell of an endpoint that is sent nothing more; ``function`` as in ``EndpointRow``."""

    url: str
    function: str | None
    failing_since: datetime | None
    disabled_at: datetime
    disabled_reason: str


async def disable(conn: Connection, project: ProjectId, endpoint: EndpointId, reason: str) -> bool:
    """Send it nothing more; False if it is disabled already, or gone. Ending what waits is up to the caller."""
    return await conn.fetchval(DISABLE_ENDPOINT, project, endpoint, reason) is not None


async def disable_by_answer(
    conn: Connection,
    project: ProjectId,
    endpoint: EndpointId,
    url: str,
    reason: str,
    *,
    failing_for: timedelta | None = None,
) -> bool:
    """Like ``disable``, for what came of a message to ``url``; with ``failing_for`` if none was taken for so long."""
    return await conn.fetchval(DISABLE_BY_ANSWER, project, endpoint, url, reason, failing_for) is not None


async def read_disabled(conn: Connection, project: ProjectId, endpoint: EndpointId) -> Disabled:
    """One that was disabled in this transaction, whether a manifest still names it or not."""
    row = await conn.fetchrow(READ_DISABLED, project, endpoint)
    assert row is not None
    return Disabled(**row)


async def enable(conn: Connection, project: ProjectId, endpoint: EndpointId) -> None:
    """Send it what comes from now on."""
    await conn.execute(ENABLE_ENDPOINT, project, endpoint)


async def note_taken(conn: Connection, endpoint: EndpointId) -> None:
    """It took a message: that ends ``failing_since``."""
    await conn.execute(NOTE_TAKEN, endpoint)


async def note_failed(conn: Connection, endpoint: EndpointId, *, quiet: timedelta, apart: timedelta) -> None:
    """It did not take a message: ``failing_since`` begins with the first of these, and anew when ``quiet`` lies between
    two. One so soon (``apart``) after another changes nothing."""
    await conn.execute(NOTE_FAILED, endpoint, quiet, apart)


async def for_sending(
    conn: Connection, project: ProjectId, wanted: Collection[EndpointId]
) -> dict[EndpointId, Sendable]:
    """Those of the endpoints that there still are."""
    if not wanted:
        return {}
    return {row["id"]: _sendable(row) for row in await conn.fetch(FOR_SENDING, project, list(wanted))}


def _sendable(row: Row) -> Sendable:
    secrets = None if row["secrets"] is None else tuple(row["secrets"])
    return Sendable(
        row["id"], row["disabled_reason"], row["failing_since"], row["failed_at"], secrets, row["signing_key"]
    )


async def state(conn: Connection, project: ProjectId, endpoint: EndpointId) -> EndpointState | None:
    """None if it is not there any more."""
    row = await conn.fetchrow(STATE, project, endpoint)
    return None if row is None else EndpointState(**row)


async def states(conn: Connection, project: ProjectId) -> list[EndpointState]:
    """All of the project's endpoints, those that no manifest names any more as well."""
    return [EndpointState(**row) for row in await conn.fetch(STATES, project)]


async def count_disabled(conn: Connection) -> int:
    """Of all projects: those that somebody names still, and nobody disabled by hand."""
    found: int = await conn.fetchval(COUNT_DISABLED, DISABLED_BY_HAND)
    return found

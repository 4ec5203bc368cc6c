"""Messages that somebody wants to be sent again, or to another address: rows of ``deliveries`` that are due anew."""

from __future__ import annotations

from datetime import datetime

from functions import endpoint_health, ids
from functions.db import Connection
from functions.egress import origin_of
from functions.errors import Conflict
from functions.ids import EndpointId, MessageId, ProjectId
from scheduler.deliveries import APART_MS, DELETED, PASSING, not_found
from scheduler.new_deliveries import DISABLED

REDELIVER = """
-- redeliver
UPDATE deliveries SET state = 'pending', tries = 0, due_at = now(), ended_reason = NULL
 WHERE project_id = $1 AND id = $2
RETURNING endpoint_id, url, (SELECT e.url FROM callback_endpoints e
                              WHERE e.project_id = $1 AND e.id = deliveries.endpoint_id) AS url_now
"""

SEND_ELSEWHERE = """
-- send_delivery_elsewhere
UPDATE deliveries SET url = $3, endpoint = $4 WHERE project_id = $1 AND id = $2
"""

RECOVER = """
-- recover_deliveries
UPDATE deliveries SET state = 'pending', tries = 0, due_at = now(), ended_reason = NULL
 WHERE id = ANY (ARRAY(
    SELECT id FROM deliveries
     WHERE project_id = $1 AND endpoint_id = $2 AND id >= $3 AND state = 'exhausted' AND type <> ALL ($7)
       AND occurred_at >= $4 AND ($5::timestamptz IS NULL OR occurred_at < $5)
     ORDER BY id LIMIT $6))
"""

WAS_TAKEN = """
-- was_delivery_taken
SELECT EXISTS (SELECT FROM delivery_attempts WHERE delivery_id = $1 AND status BETWEEN 200 AND 299)
"""

MOVE = """
-- move_deliveries
UPDATE deliveries SET url = $3, endpoint = $4 WHERE project_id = $1 AND endpoint_id = $2 AND state <> 'delivered'
"""


async def redeliver(conn: Connection, project: ProjectId, delivery: MessageId) -> None:
    """Send it again now, with the whole schedule before it, whatever came of it so far, in the caller's transaction;
    to where its endpoint is by now.

    Raises ``NotFound``, or ``Conflict`` when its endpoint takes nothing.
    """
    row = await conn.fetchrow(REDELIVER, project, delivery)
    if row is None:
        raise not_found(delivery)
    if row["endpoint_id"] is not None:
        await require_enabled(conn, project, row["endpoint_id"])
        if row["url_now"] != row["url"]:
            await conn.execute(SEND_ELSEWHERE, project, delivery, row["url_now"], origin_of(row["url_now"]))


async def require_enabled(conn: Connection, project: ProjectId, endpoint: EndpointId) -> None:
    """Raise ``Conflict`` when an endpoint is disabled, or is not there any more."""
    found = (await endpoint_health.for_sending(conn, project, [endpoint])).get(endpoint)
    if found is None:
        raise Conflict(f"{DELETED} since", code="callback_deleted")
    if found.disabled_reason is not None:
        raise Conflict(f"{DISABLED} ({found.disabled_reason}): enable it first", code="callback_disabled")


async def recover(
    conn: Connection, project: ProjectId, endpoint: EndpointId, since: datetime, until: datetime | None, *, limit: int
) -> int:
    """Send what was exhausted again, of up to ``limit`` events of that time, the oldest first; how many. What was only
    worth telling at once stays as it is."""
    done = await conn.execute(
        RECOVER, project, endpoint, ids.first_of(since, later_ms=-APART_MS), since, until, limit, list(PASSING)
    )
    return int(done.split()[-1])


async def was_taken(conn: Connection, delivery: MessageId) -> bool:
    """Whether an attempt of it succeeded, however often it was asked for again since."""
    return bool(await conn.fetchval(WAS_TAKEN, delivery))


async def move(conn: Connection, project: ProjectId, endpoint: EndpointId, url: str) -> None:
    """Send what has not reached an endpoint to its new address."""
    await conn.execute(MOVE, project, endpoint, url, origin_of(url))

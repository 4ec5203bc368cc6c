"""What an attempt says of its endpoint: that it is well, that it fails, that it wants no more; and who is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from functions import endpoint_health, ids, listening
from functions.db import Connection
from functions.endpoint_health import Sendable
from functions.grammar import CALLBACK_DISABLED
from functions.ids import EndpointId, ProjectId
from scheduler import deliveries
from scheduler.attempts import GONE
from scheduler.callbacks import endpoints_of
from scheduler.deliveries import Claimed, Exchanged
from scheduler.new_deliveries import DISABLED
from scheduler.views import rfc3339

log = structlog.get_logger(__name__)

LONGEST_FAILING = timedelta(days=5)
APART = timedelta(hours=1)
"""Failures are written down so seldom; and so far before its time it is asked whether five days are over."""
QUIET = timedelta(hours=60)
"""Longer than any pause between two attempts: one that was sent nothing for so long has not failed meanwhile."""
WANTS_NO_MORE = "it answered 410: it wants no more"
FAILS = "it has taken no message for 5 days"


def says_something(claimed: Claimed, sendable: Sendable | None, exchanged: Exchanged) -> bool:
    """Whether there is more to write down than the attempt: seldom, for endpoints that are well."""
    if not exchanged.by_receiver:
        return False
    if exchanged.status == GONE:
        return True
    if sendable is None:
        return False
    failing_since, failed_at, now = sendable.failing_since, sendable.failed_at, datetime.now(UTC)
    if exchanged.taken:
        return failing_since is not None
    if claimed.type in deliveries.PASSING:
        return False
    # The database's clock decides; ours may be a little off.
    return (
        failing_since is None
        or failed_at is None
        or now - failed_at > APART
        or now - failing_since > LONGEST_FAILING - APART
    )


async def note(conn: Connection, claimed: Claimed, exchanged: Exchanged) -> bool:
    """Write down what an attempt says of its endpoint, in the transaction that records the attempt, and before it:
    everybody locks an endpoint first, its deliveries after it. Returns whether what else waits for it has to end."""
    project, endpoint = claimed.project_id, claimed.endpoint_id
    if endpoint is None:
        # Of such an address it is 410 or nothing that is noted.
        await deliveries.lock_pending_of_job(conn, project, claimed.job_id, claimed.url)
        return True
    if exchanged.status == GONE:
        disabled = await endpoint_health.disable_by_answer(conn, project, endpoint, claimed.url, WANTS_NO_MORE)
    elif exchanged.taken:
        await endpoint_health.note_taken(conn, endpoint)
        disabled = False
    else:
        await endpoint_health.note_failed(conn, endpoint, quiet=QUIET, apart=APART)
        disabled = await endpoint_health.disable_by_answer(
            conn, project, endpoint, claimed.url, FAILS, failing_for=LONGEST_FAILING
        )
    if disabled:
        await tell(conn, project, endpoint)
    return disabled


async def end_others(conn: Connection, claimed: Claimed) -> None:
    """Give up what waits for an endpoint that was disabled, or of a job for an address that wants no more."""
    project = claimed.project_id
    if claimed.endpoint_id is None:
        await deliveries.end_pending_of_job(conn, project, claimed.job_id, claimed.url, deliveries.GONE)
    else:
        await deliveries.end_pending(conn, project, claimed.endpoint_id, claimed.url, DISABLED)


async def tell(conn: Connection, project: ProjectId, endpoint: EndpointId) -> None:
    """Tell the project's other callbacks that one was disabled, and the log."""
    row = await endpoint_health.read_disabled(conn, project, endpoint)
    listeners = [each for each in await listening.listeners(conn, project, []) if each.id != endpoint]
    told = endpoints_of((), None, None, CALLBACK_DISABLED, listeners=listeners, function=row.function)
    callback = ids.encode(ids.CALLBACK, endpoint)
    payload = {
        "callback": callback,
        "url": row.url,
        "function": row.function,
        "reason": row.disabled_reason,
        "failing_since": rfc3339(row.failing_since),
        "disabled_at": rfc3339(row.disabled_at),
        "links": {"self": f"/v1/callbacks/{callback}"},
    }
    await deliveries.add(conn, project, endpoint, CALLBACK_DISABLED, told, payload=payload, moment=row.disabled_at)
    log.warning("callback disabled", callback=callback, project=project, reason=row.disabled_reason)

"""What an outcome causes: a message for each endpoint that wants it, and jobs of functions.

They are written in the transaction that writes the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from functions import listening, versions
from functions.db import Connection, Row
from functions.ids import FunctionId, JobId, ProjectId
from functions.listening import Listener
from functions.versions import Version
from scheduler.callbacks import endpoints_of, event_of
from scheduler.chains import Chain, chains_of
from scheduler.new_deliveries import NewDelivery, new_delivery

CALLBACKS_OF = """
-- callbacks_of
SELECT id, project_id, function_id, version_id, callback_url, callback_events FROM jobs WHERE id = ANY ($1)
"""


async def caused_by(
    conn: Connection, statuses: Mapping[JobId, str]
) -> tuple[list[NewDelivery], list[Chain]]:
    """What outcomes of these statuses cause: messages, and jobs of functions."""
    rows = await conn.fetch(CALLBACKS_OF, list(statuses))
    found = await versions.by_ids(conn, {row["version_id"] for row in rows})
    listeners = await _listeners(conn, rows)
    chained = [
        chain
        for row in rows
        for chain in chains_of(
            found[row["version_id"]].manifest.spec.callbacks,
            row["project_id"],
            row["id"],
            event_of(statuses[row["id"]]),
        )
    ]
    deliveries = [
        delivery
        for row in rows
        for delivery in deliveries_of(
            found[row["version_id"]],
            row["id"],
            statuses[row["id"]],
            (row["callback_url"], row["callback_events"]),
            [each for each in listeners[row["project_id"]] if each.function_id in (None, row["function_id"])],
        )
    ]
    return deliveries, chained


def deliveries_of(
    version: Version,
    job: JobId,
    status: str,
    own: tuple[str | None, Sequence[str] | None],
    listeners: Sequence[Listener],
) -> list[NewDelivery]:
    """The messages that this outcome causes, one for each endpoint that wants it. ``own`` are the job's own URL and
    the events that it asks for."""
    kind = event_of(status)
    callbacks = version.manifest.spec.callbacks
    told = endpoints_of(callbacks, *own, kind, listeners=listeners, function=version.function_name)
    return [new_delivery(job, kind, endpoint) for endpoint in told]


async def _listeners(conn: Connection, rows: Sequence[Row]) -> dict[ProjectId, list[Listener]]:
    """The endpoints of each project that has jobs among ``rows``, and of their functions."""
    functions: dict[ProjectId, set[FunctionId | None]] = {}
    for row in rows:
        functions.setdefault(row["project_id"], set()).add(row["function_id"])
    return {project: await listening.listeners(conn, project, wanted) for project, wanted in functions.items()}

"""Events of a job before its end: that it started, and how far it is. Written as they happen, with the job object of
that moment, for whoever asked.

The queue's own statements say for which jobs somebody may have asked: for all others nothing here runs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta

from functions import listening, versions
from functions.db import Connection, Row
from functions.grammar import PROGRESS, STARTED
from functions.ids import JobId, ProjectId
from scheduler import deliveries
from scheduler.callbacks import endpoints_of, thin
from scheduler.claiming import Claimed
from scheduler.views import Links, job_object, read_jobs

APART = timedelta(milliseconds=500)
"""Of one job's progress no more is told than this."""

ASKED_OF = """
-- asked_of_jobs
SELECT id, project_id, function_id, version_id, callback_url, callback_events, now() AS at FROM jobs
 WHERE id = ANY ($1)
   AND NOT EXISTS (SELECT 1 FROM deliveries
                    WHERE deliveries.job_id = jobs.id AND deliveries.type = $2
                      AND deliveries.occurred_at > clock_timestamp() - $3::interval)
"""


async def tell_started(conn: Connection, links: Links, claimed: Sequence[Claimed]) -> bool:
    """Write that jobs were leased for the first time, in the transaction that leased them; whether there is anything
    to be sent."""
    heard = [each.job_id for each in claimed if each.heard]
    return bool(heard) and await _tell(conn, links, heard, STARTED, timedelta(0))


async def tell_progress(conn: Connection, links: Links, jobs: Collection[JobId]) -> bool:
    """Write how far jobs are, unless that was said a moment ago; whether there is anything to be sent."""
    return bool(jobs) and await _tell(conn, links, sorted(jobs), PROGRESS, APART)


async def _tell(conn: Connection, links: Links, jobs: Sequence[JobId], kind: str, apart: timedelta) -> bool:
    rows = await conn.fetch(ASKED_OF, jobs, kind, apart)
    found = await versions.by_ids(conn, {row["version_id"] for row in rows})
    of_project: dict[ProjectId, list[Row]] = {}
    for row in rows:
        of_project.setdefault(row["project_id"], []).append(row)
    told = False
    for project, asked in of_project.items():
        hearing = await listening.listeners(conn, project, {row["function_id"] for row in asked})
        records = await read_jobs(conn, project, [row["id"] for row in asked])
        # Written down as short as it is sent: a job's params may be a megabyte, and it may get on a thousand times.
        objects = {record.id: thin(job_object(record, links)) for record in records}
        for row in asked:
            version = found[row["version_id"]]
            wanting = endpoints_of(
                version.manifest.spec.callbacks, row["callback_url"], row["callback_events"], kind,
                listeners=[each for each in hearing if each.function_id in (None, row["function_id"])],
                function=version.function_name,
            )  # fmt: skip
            new = await deliveries.add(
                conn, project, row["id"], kind, wanting, payload=objects[row["id"]],
                moment=row["at"] if kind == PROGRESS else None,
            )  # fmt: skip
            told = told or bool(new)
    return told

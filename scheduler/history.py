"""What happened to a job, in order: derived from its rows, so that the hot path writes no events.

Reads ``jobs``, ``job_attempts``, ``leases``, ``waiting_jobs``, ``ready_jobs``, ``outcomes`` and ``chains``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from functions import ids
from functions.db import Connection
from functions.errors import NotFound
from functions.ids import JobId, ProjectId
from scheduler.chains import chain_events
from scheduler.views import moments, rfc3339

JOB_HISTORY = """
-- job_history
SELECT 0 AS kind, created_at AS at, NULL::int AS attempt, NULL::uuid AS node_id, NULL::timestamptz AS queued_at,
       NULL::timestamptz AS leased_at, NULL::json AS timeline, NULL::json AS error, NULL::text AS status,
       NULL::timestamptz AS next_at, NULL::int AS exit_code, NULL::json AS rejected
  FROM jobs WHERE id = $2 AND project_id = $1
UNION ALL
SELECT 1, ended_at, attempt, node_id, queued_at, leased_at, timeline, error, NULL, next_at, exit_code, NULL
  FROM job_attempts WHERE job_id = $2 AND project_id = $1
UNION ALL
SELECT 2, queued_at, attempt, NULL, queued_at, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM ready_jobs WHERE job_id = $2 AND project_id = $1
UNION ALL
SELECT 3, leased_at, attempt, node_id, queued_at, leased_at, timeline, NULL,
       CASE WHEN cancel_requested THEN 'cancel' END, NULL, NULL, NULL
  FROM leases WHERE job_id = $2 AND project_id = $1
UNION ALL
SELECT 4, finished_at, attempt, node_id, queued_at, leased_at, timeline, error, status, NULL, exit_code, rejected
  FROM outcomes WHERE job_id = $2 AND project_id = $1
"""

WAITING = """
-- waiting_job
SELECT due_at FROM waiting_jobs WHERE job_id = $2 AND project_id = $1
"""

STAGES = {
    "pulling": "pulling",
    "fetching": "fetching_inputs",
    "started": "started",
    "exited": "exited",
    "collecting": "collecting_outputs",
    "uploaded": "outputs_uploaded",
}
"""Stage of a timeline → type of event."""


async def job_events(conn: Connection, project: ProjectId, job: JobId) -> list[dict[str, Any]]:
    """Events ``{at, type, …}`` of a job, oldest first; raises ``NotFound``."""
    rows = sorted(await conn.fetch(JOB_HISTORY, project, job), key=lambda row: (row["attempt"] or 0, row["kind"]))
    if not rows:
        raise NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")
    due = await conn.fetchval(WAITING, project, job)
    chained = await chain_events(conn, project, job)
    events: list[tuple[datetime, dict[str, Any]]] = [(rows[0]["at"], {"type": "created"})]
    for row in rows[1:]:
        events += _of(row)
    if due is not None and len(rows) == 1:
        events.append((rows[0]["at"], {"type": "scheduled", "until": rfc3339(due)}))
    events += chained
    # Sorting is stable: what has the same time stays in the order of its stages.
    return [{"at": rfc3339(at), **event} for at, event in sorted(events, key=lambda pair: pair[0])]


def _of(row: Mapping[str, Any]) -> list[tuple[datetime, dict[str, Any]]]:
    """The events that one row tells of."""
    events: list[tuple[datetime, dict[str, Any]]] = []
    if row["queued_at"] is not None:
        events.append((row["queued_at"], {"type": "queued"}))
    if row["leased_at"] is not None:
        about = {"attempt": row["attempt"], "node": ids.encode(ids.NODE, row["node_id"])}
        events.append((row["leased_at"], {"type": "leased", **about}))
        times = moments(row["leased_at"], json.loads(row["timeline"]))
        events += [(times[stage], {"type": kind, **about}) for stage, kind in STAGES.items() if stage in times]
        if row["status"] == "cancel":
            events.append((max([row["leased_at"], *times.values()]), {"type": "cancel_requested", **about}))
    if row["kind"] == 1:
        error = json.loads(row["error"])
        ended = {"attempt": row["attempt"], "error": error, "exit_code": row["exit_code"]}
        lost = error["code"] in ("node_lost", "node_drained")
        events.append((row["at"], {"type": error["code"] if lost else "attempt_failed", **ended}))
        if not lost:
            events.append((row["at"], {"type": "retry_scheduled", "until": rfc3339(row["next_at"])}))
    if row["kind"] == 4:
        rejected = json.loads(row["rejected"])
        events += [(row["at"], {"type": "output_rejected", **refused}) for refused in rejected]
        error = None if row["error"] is None else json.loads(row["error"])
        events.append((row["at"], {"type": row["status"], "exit_code": row["exit_code"], "error": error}))
    return events

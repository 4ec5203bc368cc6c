"""The job object, everywhere the same (PRODUCT §4): read in one statement, shown as a dict of JSON types.

Reads the queue's tables, writes none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from functions import ids
from functions.artifacts import Artifact, outputs_of
from functions.db import Connection, Row
from functions.ids import JobId, ProjectId
from functions.money import CURRENCY, euros
from functions.versions import Version
from scheduler.costs import JobCost, costs_of
from scheduler.queue import NewJob
from scheduler.spill import reference_of

JOB_ROWS = """
-- job_rows
SELECT jobs.id, jobs.project_id, jobs.trigger, jobs.params, jobs.callback_url, jobs.batch_id, jobs.retried_from,
       jobs.created_at, jobs.key_id, jobs.max_cost, functions.name AS function, function_versions.number AS version,
       (function_versions.manifest #>> '{spec,retry,attempts}')::int AS attempts,
       CASE WHEN outcomes.job_id IS NOT NULL THEN outcomes.status
            WHEN leases.job_id IS NOT NULL THEN 'running'
            WHEN ready_jobs.job_id IS NOT NULL THEN 'queued'
            WHEN waiting_jobs.stage IN ('gated', 'paused') THEN 'queued'
            WHEN waiting_jobs.job_id IS NOT NULL THEN 'scheduled' END AS status,
       coalesce(outcomes.attempt, leases.attempt, ready_jobs.attempt, waiting_jobs.attempt) AS attempt,
       coalesce(outcomes.losses, leases.losses, ready_jobs.losses, waiting_jobs.losses) AS losses,
       coalesce(outcomes.queued_at, leases.queued_at, ready_jobs.queued_at, waiting_jobs.queued_at) AS queued_at,
       coalesce(outcomes.leased_at, leases.leased_at) AS leased_at,
       coalesce(outcomes.node_id, leases.node_id) AS node_id, servers.node_id IS NOT NULL AS rented,
       -- Of the wait, what the node that ended it took to boot; its moments are the cloud's. A node that is not rented
       -- has none, which least and greatest would pass over.
       CASE WHEN servers.node_id IS NOT NULL THEN
           (extract(epoch FROM least(servers.ready_at - (SELECT ahead FROM fleet),
                                     coalesce(outcomes.leased_at, leases.leased_at))
                             - greatest(servers.planned_at - (SELECT ahead FROM fleet),
                                        coalesce(outcomes.queued_at, leases.queued_at)))
            * 1000)::float8 END AS boot_ms,
       coalesce(outcomes.timeline, leases.timeline) AS timeline,
       leases.progress, waiting_jobs.due_at, outcomes.finished_at, outcomes.exit_code, outcomes.error, outcomes.result,
       CASE WHEN functions.paused_at IS NOT NULL AND (ready_jobs.job_id IS NOT NULL OR waiting_jobs.due_at IS NULL)
            THEN 'paused' ELSE waiting_jobs.stage END AS stage,
       ready_jobs.cls, ready_jobs.lane, gates.level, node_waits.reason AS node_reason, node_waits.eta AS node_eta,
       -- The first one at a rate's limit starts when the oldest start counts no more.
       (SELECT min(until) FROM slots WHERE gates.level = 3 AND slots.gate_id = gates.id AND until IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM waiting_jobs other
                            WHERE other.stage = 'gated' AND other.gate_id = gates.id
                              AND (other.head, other.job_id) < (waiting_jobs.head, waiting_jobs.job_id))) AS next_start
  FROM unnest($2::uuid[]) WITH ORDINALITY AS wanted (id, ord)
  JOIN jobs ON jobs.id = wanted.id AND jobs.project_id = $1
  JOIN function_versions ON function_versions.id = jobs.version_id
  LEFT JOIN functions ON functions.id = jobs.function_id
  LEFT JOIN outcomes ON outcomes.job_id = jobs.id
  LEFT JOIN leases ON leases.job_id = jobs.id
  LEFT JOIN servers ON servers.node_id = coalesce(outcomes.node_id, leases.node_id)
  LEFT JOIN ready_jobs ON ready_jobs.project_id = jobs.project_id AND ready_jobs.job_id = jobs.id
  LEFT JOIN waiting_jobs ON waiting_jobs.project_id = jobs.project_id AND waiting_jobs.job_id = jobs.id
  LEFT JOIN gates ON gates.id = waiting_jobs.gate_id
  -- What a round of the autoscaler found lately: without one there is none.
  LEFT JOIN node_waits ON node_waits.project_id = ready_jobs.project_id AND node_waits.lane = ready_jobs.lane
        AND node_waits.cls = ready_jobs.cls AND node_waits.at > now() - interval '2 minutes'
 ORDER BY wanted.ord
"""

# Of a node that serves the project's account: what its largest gap holds.
LARGEST_GAP = """
-- largest_gap
SELECT coalesce(max(slots - (SELECT coalesce(sum(cls), 0) FROM leases WHERE leases.node_id = nodes.id)), 0)
  FROM nodes
 WHERE state = 'ready' AND (account_id IS NULL OR account_id = (SELECT account_id FROM projects WHERE id = $1))
   AND NOT EXISTS (SELECT 1 FROM servers WHERE servers.node_id = nodes.id AND servers.closed)
"""

GATE_REASONS = {1: "concurrency", 2: "concurrency", 3: "rate"}


class Links(Protocol):
    """Makes the addresses in a job object."""

    def presigned(self, artifact: Artifact) -> tuple[str, datetime]:
        """A URL that downloads the artifact, and when it stops working."""

    def stable(self, artifact: Artifact) -> str:
        """The address that mints a fresh presigned URL per hit."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    id: JobId
    row: Mapping[str, Any]
    outputs: tuple[Artifact, ...]

    @property
    def status(self) -> str:
        return str(self.row["status"])

    @property
    def finished(self) -> bool:
        return self.row["finished_at"] is not None


NOT_YET = (
    "leased_at", "node_id", "timeline", "progress", "finished_at", "exit_code", "error", "result", "next_start",
    "node_eta", "boot_ms",
)  # fmt: skip


def new_record(job: NewJob, version: Version, created_at: datetime) -> JobRecord:
    """The record of a job that was written just now: what ``read_jobs`` would read, without asking the database."""
    row = dict.fromkeys(NOT_YET) | {
        "id": job.id,
        "project_id": job.project_id,
        "trigger": job.trigger,
        "params": job.params,
        "callback_url": job.callback_url,
        "batch_id": None,
        "retried_from": job.retried_from,
        "created_at": created_at,
        "key_id": job.key_id,
        "function": version.function_name,
        "version": version.number,
        "attempts": version.manifest.spec.retry.attempts,
        "status": "queued" if job.delay is None else "scheduled",
        "attempt": 0,
        "losses": 0,
        "queued_at": created_at if job.delay is None else None,
        "due_at": None if job.delay is None else created_at + job.delay,
        "wait_reason": None if job.delay is None else "delayed",
        "cost": JobCost(),
        "max_cost": job.max_cost,
    }
    return JobRecord(job.id, row, ())


async def read_jobs(conn: Connection, project: ProjectId, jobs: Sequence[JobId]) -> list[JobRecord]:
    """Records of those jobs of the project that exist, in the order asked for."""
    rows: list[Row] = await conn.fetch(JOB_ROWS, project, list(jobs))
    queued = [row["cls"] for row in rows if row["cls"] is not None and row["status"] == "queued"]
    gap = await conn.fetchval(LARGEST_GAP, project) if queued else 0
    done = [row["id"] for row in rows if row["status"] == "succeeded"]
    outputs = await outputs_of(conn, project, done) if done else {}
    costly = [row["id"] for row in rows if _may_have_cost(row)]
    costs = await costs_of(conn, project, costly) if costly else {}
    return [
        JobRecord(
            row["id"],
            dict(row) | _waits(row, gap) | {"cost": costs.get(row["id"], JobCost())},
            tuple(outputs.get(row["id"], ())),
        )
        for row in rows
    ]


def _may_have_cost(row: Row) -> bool:
    """Whether its node is a rented one, or an earlier attempt's may have been."""
    return bool(row["rented"]) or (row["attempt"] or 0) > (0 if row["node_id"] is None else 1)


def _waits(row: Row, gap: int) -> dict[str, Any]:
    """Why the job waits, and until when a node is expected for it."""
    reason = _reason(row, gap)
    for_node = reason is not None and reason == row["node_reason"]
    return {"wait_reason": reason, "node_eta": row["node_eta"] if for_node else None}


def _reason(row: Row, gap: int) -> str | None:
    """Why the job waits; None for one that runs, has ended, or is about to start."""
    if row["status"] not in ("scheduled", "queued"):
        return None
    if row["stage"] == "gated":
        return GATE_REASONS.get(row["level"], "concurrency")
    if row["stage"] is not None:
        return str(row["stage"])
    if row["cls"] is None or (row["cls"] <= gap and (row["lane"] == 0 or row["node_reason"] is None)):
        return None
    return row["node_reason"] or "capacity"


def moments(leased_at: datetime, timeline: Mapping[str, int]) -> dict[str, datetime]:
    """A timeline (milliseconds after the lease, on the node's own clock) as times of the database's clock."""
    return {stage: leased_at + timedelta(milliseconds=offset) for stage, offset in timeline.items()}


def rfc3339(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _span_ms(times: Mapping[str, datetime], start: str, *ends: str) -> int:
    """Milliseconds from one stage to the first of ``ends`` that was reached; 0 when either is missing."""
    begun = times.get(start)
    ended = next((times[end] for end in ends if end in times), None)
    return 0 if begun is None or ended is None else max(0, round((ended - begun).total_seconds() * 1000))


def job_object(record: JobRecord, links: Links) -> dict[str, Any]:
    """The job as users see it; of params that lie in the store, where they are. Times are RFC 3339 UTC, spans
    milliseconds.

    ``queue_ms`` ends when a node took the job; ``boot_ms`` is the part of it in which that node was bought and booted.
    ``pull_ms`` is the image, ``run_ms`` the container's own time.
    """
    row = record.row
    times = moments(row["leased_at"], json.loads(row["timeline"])) if row["leased_at"] else {}
    name = ids.encode(ids.JOB, record.id)
    reference = reference_of(row["params"])
    waited = row["leased_at"] - row["queued_at"] if row["leased_at"] and row["queued_at"] else None
    return {
        "id": name,
        "function": row["function"],
        "version": row["version"],
        "status": row["status"],
        "trigger": json.loads(row["trigger"]),
        "params": json.loads(row["params"]) if reference is None else {"$artifact": reference},
        "batch": _id(ids.BATCH, row["batch_id"]),
        "retried_from": _id(ids.JOB, row["retried_from"]),
        "attempt": row["attempt"],
        # One after running out of memory may come on top.
        "max_attempts": max((row["attempts"] or 1) + row["losses"], row["attempt"]),
        "wait_reason": row["wait_reason"],
        "eta": rfc3339(row["due_at"] or row["next_start"] or row["node_eta"]),
        "progress": 1.0 if row["status"] == "succeeded" else row["progress"],
        "exit_code": row["exit_code"],
        "result": None if row["result"] is None else json.loads(row["result"]),
        "error": None if row["error"] is None else json.loads(row["error"]),
        "outputs": [_output(artifact, links) for artifact in record.outputs],
        "created_at": rfc3339(row["created_at"]),
        "queued_at": rfc3339(row["queued_at"]),
        "started_at": rfc3339(times.get("started") or row["leased_at"]),
        "finished_at": rfc3339(row["finished_at"]),
        "queue_ms": None if waited is None else max(0, round(waited.total_seconds() * 1000)),
        "boot_ms": max(0, round(row["boot_ms"] or 0)),
        "pull_ms": _span_ms(times, "pulling", "fetching", "started"),
        "run_ms": _span_ms(times, "started", "exited"),
        "cost": {
            "currency": CURRENCY,
            "amount": euros(row["cost"].amount),
            "estimated": not record.finished or row["cost"].is_open,
        },
        "max_cost": None if row["max_cost"] is None else euros(row["max_cost"]),
        "node": _id(ids.NODE, row["node_id"]),
        "callback_url": row["callback_url"],
        "links": {
            "self": f"/v1/jobs/{name}",
            "logs": f"/v1/jobs/{name}/logs",
            "events": f"/v1/jobs/{name}/events",
            "cancel": f"/v1/jobs/{name}/cancel",
            "retry": f"/v1/jobs/{name}/retry",
        },
    }


def _id(prefix: str, value: UUID | None) -> str | None:
    return None if value is None else ids.encode(prefix, value)


def _output(artifact: Artifact, links: Links) -> dict[str, Any]:
    url, expires_at = links.presigned(artifact) if artifact.kept else (None, None)
    name = ids.encode(ids.ARTIFACT, artifact.id)
    return {
        "name": artifact.name,
        "path": artifact.path,
        "artifact": name,
        "uri": f"artifact:{name}",
        "size": artifact.size,
        "sha256": artifact.sha256,
        "content_type": artifact.content_type,
        "url": url,
        "url_expires_at": rfc3339(expires_at),
        "link": links.stable(artifact),
    }

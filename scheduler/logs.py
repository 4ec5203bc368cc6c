"""What containers wrote. Owns ``log_chunks``.

A log is one attempt's bytes as they came; a position is a byte's offset in it. Chunks lie end to end: each is taken
only where the log ends, so that one which comes twice, late or out of order changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

from functions import ids
from functions.db import Connection
from functions.errors import LeaseLost, NotFound
from functions.ids import JobId, NodeId, ProjectId

READ_BYTES = 64 * 1024
"""What a reader holds at once."""
TAIL_BYTES = 256 * 1024

APPEND_LOG = """
-- append_log
WITH held AS (
    -- The lock keeps the lease's end waiting, so that nothing is added to a log once its attempt is over.
    SELECT 1 FROM leases WHERE job_id = $1 AND token = $2 AND node_id = $3 AND attempt = $4 FOR KEY SHARE
), log AS (
    SELECT coalesce((SELECT position + length(data) FROM log_chunks WHERE job_id = $1 AND attempt = $4
                      ORDER BY position DESC LIMIT 1), 0) AS size
), added AS (
    INSERT INTO log_chunks (job_id, attempt, position, data)
    SELECT $1, $4, $5::bigint, $6::bytea FROM held, log WHERE log.size = $5 AND length($6) > 0
    ON CONFLICT DO NOTHING
    RETURNING length(data) AS bytes
)
SELECT EXISTS (SELECT 1 FROM held) AS held, log.size, (SELECT bytes FROM added) AS added FROM log
"""

LOG_SIZE = """
-- log_size
SELECT position + length(data) FROM log_chunks WHERE job_id = $1 AND attempt = $2 ORDER BY position DESC LIMIT 1
"""

# length() of a bytea does not read the bytes, so the last chunk is passed over cheaply by a reader at the log's end.
READ_LOG = """
-- read_log
SELECT min(position) AS first, string_agg(data, ''::bytea ORDER BY position) AS data FROM log_chunks
 WHERE job_id = $1 AND attempt = $2 AND position < $3::bigint + $4::bigint AND position + length(data) > $3
   AND position >= coalesce((SELECT position FROM log_chunks
                              WHERE job_id = $1 AND attempt = $2 AND position <= $3
                              ORDER BY position DESC LIMIT 1), 0)
"""

LOG_STATE = """
-- log_state
SELECT CASE WHEN outcomes.job_id IS NOT NULL THEN outcomes.status
            WHEN leases.job_id IS NOT NULL THEN 'running'
            WHEN ready_jobs.job_id IS NOT NULL THEN 'queued' ELSE 'scheduled' END AS status,
       coalesce(outcomes.attempt, leases.attempt, ready_jobs.attempt, waiting_jobs.attempt, 0) AS attempt,
       outcomes.job_id IS NULL AND leases.job_id IS NOT NULL AS writing,
       outcomes.job_id IS NOT NULL AS ended
  FROM jobs
  LEFT JOIN outcomes ON outcomes.job_id = jobs.id
  LEFT JOIN leases ON leases.job_id = jobs.id
  LEFT JOIN ready_jobs ON ready_jobs.project_id = jobs.project_id AND ready_jobs.job_id = jobs.id
  LEFT JOIN waiting_jobs ON waiting_jobs.project_id = jobs.project_id AND waiting_jobs.job_id = jobs.id
 WHERE jobs.id = $2 AND jobs.project_id = $1 AND ($3::text IS NULL OR jobs.key_id = $3)
"""

# A CR at the end may be half of a CRLF: whoever searches gives the byte behind it, too.
_LINE_END = re.compile(rb"\n|\r(?!\n)")


@dataclass(frozen=True, slots=True)
class LogState:
    """``attempt`` is the latest that has begun (0: none), ``writing`` is whether it goes on; ``ended``: the job has an
    outcome."""

    status: str
    attempt: int
    writing: bool
    ended: bool


async def append(
    conn: Connection,
    node: NodeId,
    job: JobId,
    token: UUID,
    attempt: int,
    *,
    position: int,
    data: bytes,
    cap: int,
) -> int:
    """Add bytes to an attempt's log if ``position`` is where it ends; empty ``data`` only asks.

    Returns where the next bytes belong. What lies beyond ``cap`` bytes is replaced by one line that says so. Raises
    ``LeaseLost`` unless the node holds this very attempt.
    """
    kept = _capped(position, data, cap)
    row = await conn.fetchrow(APPEND_LOG, job, token, node, attempt, position, kept)
    assert row is not None
    if not row["held"]:
        raise LeaseLost(f"this lease on {ids.encode(ids.JOB, job)} is over: another attempt may be running")
    if row["added"] is None and kept and row["size"] == position:
        # The same chunk came twice at once, and the other one was faster: the statement could not see it yet.
        return await size(conn, job, attempt)
    return int(row["size"] + (row["added"] or 0))


def _capped(position: int, data: bytes, cap: int) -> bytes:
    if position >= cap:
        return b""
    if position + len(data) <= cap:
        return data
    kept = data[: cap - position]
    gap = b"" if kept.endswith(b"\n") else b"\n"
    return kept + gap + b"[rgrid: log cut at %d MiB]\n" % (cap // 2**20)


async def size(conn: Connection, job: JobId, attempt: int) -> int:
    """Bytes of an attempt's log so far."""
    return int(await conn.fetchval(LOG_SIZE, job, attempt) or 0)


async def state(conn: Connection, project: ProjectId, job: JobId, key_id: str | None = None) -> LogState:
    """Where a job of the project is, as far as its log goes; raises ``NotFound``.

    With ``key_id`` there are no jobs but those that this key asked for.
    """
    row = await conn.fetchrow(LOG_STATE, project, job, key_id)
    if row is None:
        raise NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")
    return LogState(**row)


async def read(conn: Connection, job: JobId, attempt: int, position: int, limit: int = READ_BYTES) -> bytes:
    """Up to ``limit`` bytes from ``position`` on, fewer only at the log's end. The caller knows whose job it is."""
    row = await conn.fetchrow(READ_LOG, job, attempt, position, limit)
    if row is None or row["data"] is None:
        return b""
    skipped = position - row["first"]
    return bytes(row["data"][skipped : skipped + limit])


async def tail(conn: Connection, job: JobId, attempt: int, lines: int) -> int:
    """Where the last ``lines`` lines of a log begin, as it stands. A line ends in LF, CRLF or CR; the last one may be
    without."""
    end = stop = await size(conn, job, attempt)
    if lines == 0:
        return end
    behind = b""
    while stop > 0:
        first = max(0, stop - TAIL_BYTES)
        block = await read(conn, job, attempt, first, stop - first)
        found = _LINE_END.finditer(block + behind)
        starts = [first + match.end() for match in found if match.start() < len(block)]
        # What is behind the very last line end is not a line.
        starts = [start for start in starts if start < end]
        if len(starts) >= lines:
            return starts[-lines]
        lines -= len(starts)
        stop, behind = first, block[:1]
    return 0

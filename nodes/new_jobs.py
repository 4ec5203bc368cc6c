"""The jobs that came since the round before, counted for the policy's rate of arrivals. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import UUID

from functions import ids
from functions.db import Connection
from functions.ids import AccountId
from nodes.policy.arrivals import WINDOW_S, Arrivals

MOST = 1_000
"""Jobs of a project that are counted of one reading: of a flood no spare is made."""

# So many small probes for each project, however many jobs there are. Of one that ended unstarted no size is known.
NEW_JOBS = """
-- new_jobs
SELECT projects.account_id, count(*) AS jobs, max(newest.id::text)::uuid AS last, max(newest.created_at) AS came_at,
       sum(coalesce(
           (SELECT cls FROM leases WHERE leases.job_id = newest.id),
           (SELECT cls FROM ready_jobs WHERE ready_jobs.project_id = projects.id AND ready_jobs.job_id = newest.id),
           (SELECT cls FROM waiting_jobs
             WHERE waiting_jobs.project_id = projects.id AND waiting_jobs.job_id = newest.id),
           (SELECT slots FROM outcomes WHERE outcomes.job_id = newest.id),
           1))::bigint AS slots
  FROM projects CROSS JOIN LATERAL (
    SELECT id, created_at FROM jobs WHERE project_id = projects.id AND id > $1 ORDER BY id DESC LIMIT $2) newest
 GROUP BY projects.account_id, date_trunc('second', newest.created_at)
 ORDER BY came_at
"""


class NewJobs:
    """One for a process. The first reading goes as far back as the rate does, so that a scheduler that takes over, or
    starts again, does not let spares go."""

    def __init__(self) -> None:
        self._arrivals = Arrivals()
        self._last: UUID | None = None

    async def rates(self, conn: Connection, *, now: datetime, ahead: timedelta) -> Mapping[AccountId, float]:
        """Slots per second, by account. ``now`` is the cloud's clock, ``ahead`` what it is ahead of the database's."""
        last = self._last or ids.first_of(now - ahead - timedelta(seconds=WINDOW_S))
        rows = await conn.fetch(NEW_JOBS, last, MOST)
        for row in rows:
            came_at = (row["came_at"] + ahead).timestamp()
            self._arrivals.add(AccountId(row["account_id"]), came_at, jobs=row["jobs"], slots=row["slots"])
        self._last = max([last, *(row["last"] for row in rows)])
        return self._arrivals.rates(now.timestamp())

"""What jobs have cost. Reads the queue's tables and the ledger's, writes none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from functions.db import Connection
from functions.ids import JobId, ProjectId

# Attempts on nodes that are not rented cost nothing. What ran since the last hour of its node that is settled is
# estimated by its time alone, without a part of what nobody fills. Hours are of the cloud's clock.
COSTS = """
-- costs_of_jobs
WITH attempts AS (
    SELECT job_id, node_id, slots, leased_at, finished_at AS ended_at FROM outcomes
     WHERE job_id = ANY ($2) AND project_id = $1 AND node_id IS NOT NULL
    UNION ALL
    SELECT job_id, node_id, slots, leased_at, ended_at FROM job_attempts WHERE job_id = ANY ($2) AND project_id = $1
    UNION ALL
    SELECT job_id, node_id, cls, leased_at, now() FROM leases WHERE job_id = ANY ($2) AND project_id = $1
), open AS (
    SELECT attempts.job_id, sum(
               greatest(extract(epoch FROM least(attempts.ended_at + fleet.ahead, servers.ended_at)
                                         - greatest(attempts.leased_at + fleet.ahead, settled.until)), 0)
               * coalesce(attempts.slots, 1) * servers.hourly / servers.slots / 3600) AS amount
      FROM attempts JOIN servers ON servers.node_id = attempts.node_id CROSS JOIN fleet CROSS JOIN LATERAL (
        SELECT servers.created_at + (max(hour) + 1) * interval '1 hour' AS until FROM server_hours
         WHERE server_hours.node_id = servers.node_id AND settled_at IS NOT NULL) settled
     GROUP BY attempts.job_id
), closed AS (
    SELECT job_id, sum(server + ipv4 + idle) AS amount FROM receipts
     WHERE job_id = ANY ($2) AND project_id = $1 GROUP BY job_id
)
SELECT wanted.job_id, coalesce(closed.amount, 0) + round(coalesce(open.amount, 0), 9) AS amount,
       coalesce(open.amount, 0) > 0 AS is_open
  FROM unnest($2::uuid[]) AS wanted (job_id)
  LEFT JOIN open ON open.job_id = wanted.job_id
  LEFT JOIN closed ON closed.job_id = wanted.job_id
"""


@dataclass(frozen=True, slots=True)
class JobCost:
    """EUR net. ``is_open``: a part of it is an estimate, as the hour that it ran in is not settled yet."""

    amount: Decimal = Decimal(0)
    is_open: bool = False


async def costs_of(conn: Connection, project: ProjectId, jobs: Sequence[JobId]) -> dict[JobId, JobCost]:
    """What each of these jobs of the project has cost, all of its attempts together."""
    rows = await conn.fetch(COSTS, project, list(jobs))
    return {JobId(row["job_id"]): JobCost(row["amount"], row["is_open"]) for row in rows}

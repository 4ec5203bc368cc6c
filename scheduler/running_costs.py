"""What the running of jobs has cost: the time that they filled slots, at their nodes' prices, IPv4 included.

That is what a job's ``max_cost`` limits. Time that nobody fills is the fleet's and not counted, so that what a job may
do does not depend on others; its receipts have that, too (``costs``). Nodes that are not rented cost nothing. The slot
is taken from the lease on: images and inputs count while they are fetched, outputs while they are stored.

Reads the queue's tables and the ledger's; of ``leases`` it writes how long a job's money is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from functions.db import Connection
from functions.ids import JobId, ProjectId

# Earlier attempts count, whatever became of them. Money for longer than ten years is no limit (and no moment, perhaps).
LIMIT_LEASES = """
-- limit_leases
WITH priced AS (
    SELECT leases.job_id, leases.leased_at, (jobs.max_cost - coalesce((
               SELECT sum(extract(epoch FROM a.ended_at - a.leased_at) * coalesce(a.slots, 1)
                          * then_.hourly / then_.slots / 3600)
                 FROM job_attempts a JOIN servers then_ ON then_.node_id = a.node_id
                WHERE a.job_id = leases.job_id), 0))
           / (leases.cls * servers.hourly / servers.slots / 3600) AS seconds
      FROM leases JOIN jobs ON jobs.id = leases.job_id JOIN servers ON servers.node_id = leases.node_id
     WHERE leases.job_id = ANY ($1) AND jobs.max_cost IS NOT NULL AND servers.hourly > 0
)
UPDATE leases SET pays_until = leases.leased_at + interval '1 second' * greatest(priced.seconds, 0)::float8
  FROM priced
 WHERE leases.job_id = priced.job_id AND priced.seconds < 315360000
RETURNING leases.job_id, priced.seconds::float8 AS seconds
"""

RUNNING_COSTS = """
-- running_costs
SELECT wanted.job_id, round(coalesce(sum(
           extract(epoch FROM ran.ended_at - ran.leased_at) * coalesce(ran.slots, 1)
           * servers.hourly / servers.slots / 3600), 0), 9) AS amount
  FROM unnest($2::uuid[]) AS wanted (job_id)
  LEFT JOIN LATERAL (
    SELECT node_id, slots, leased_at, finished_at AS ended_at FROM outcomes
     WHERE outcomes.job_id = wanted.job_id AND project_id = $1
    UNION ALL
    SELECT node_id, slots, leased_at, ended_at FROM job_attempts
     WHERE job_attempts.job_id = wanted.job_id AND project_id = $1) ran ON true
  LEFT JOIN servers ON servers.node_id = ran.node_id
 GROUP BY wanted.job_id
"""


async def limit_leases(conn: Connection, jobs: Sequence[JobId]) -> dict[JobId, float]:
    """Note for how long the money of jobs with a ``max_cost``, leased in this transaction, is enough on their nodes.

    Returns the seconds from the lease on, at most 0 if it is used up; a job that is missing has no such end.
    """
    return {JobId(row["job_id"]): row["seconds"] for row in await conn.fetch(LIMIT_LEASES, list(jobs))}


async def running_costs(conn: Connection, project: ProjectId, jobs: Sequence[JobId]) -> list[Decimal]:
    """EUR net of each of these finished jobs, in no set order."""
    return [row["amount"] for row in await conn.fetch(RUNNING_COSTS, project, list(jobs))]

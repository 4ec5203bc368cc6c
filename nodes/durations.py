"""How long jobs hold their slots, by what has ended: of their function, else of their project, else of all.

Reads ``outcomes`` and ``jobs``, writes none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from datetime import UTC, datetime

from functions.db import Connection
from functions.ids import FunctionId, ProjectId
from nodes.policy.expected import UNKNOWN, Expected, expected

KEPT = 200
"""Runs of a class that are looked at."""
AT_FIRST, AT_A_TIME = 5_000, 2_000

ENDED = """
-- ended_lately
SELECT finished_at, project_id, function_id, seconds FROM (
    SELECT outcomes.finished_at, outcomes.project_id, jobs.function_id,
           extract(epoch FROM outcomes.finished_at - outcomes.leased_at)::float8 AS seconds
      FROM outcomes JOIN jobs ON jobs.id = outcomes.job_id
     WHERE outcomes.finished_at > $1 AND outcomes.leased_at IS NOT NULL
     ORDER BY outcomes.finished_at DESC, outcomes.job_id DESC LIMIT $2) latest
 ORDER BY finished_at
"""
BEFORE_ALL = datetime(2000, 1, 1, tzinfo=UTC)


class Durations:
    """A memory of what ended; each process has its own and fills it from the database."""

    def __init__(self) -> None:
        self._to = BEFORE_ALL
        self._runs: dict[Hashable, deque[float]] = {}
        self._judged: dict[Hashable, Expected] = {}

    async def refresh(self, conn: Connection) -> None:
        """Take in what has ended since the last time, at most some thousands of the latest."""
        rows = await conn.fetch(ENDED, self._to, AT_FIRST if self._to == BEFORE_ALL else AT_A_TIME)
        for row in rows:
            for key in (("function", row["function_id"]), ("project", row["project_id"]), "all"):
                self._runs.setdefault(key, deque(maxlen=KEPT)).append(max(row["seconds"], 0.0))
                self._judged.pop(key, None)
            self._to = row["finished_at"]

    def of(self, function: FunctionId | None, project: ProjectId) -> Expected:
        keys = (("function", function), ("project", project), "all")
        known = next((key for key in keys if self._runs.get(key) and key != ("function", None)), None)
        if known is None:
            return UNKNOWN
        if known not in self._judged:
            self._judged[known] = expected(self._runs[known])
        return self._judged[known]

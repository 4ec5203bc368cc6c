"""Where the projects' sequences had got to, noted from time to time: a head start of an hour begins where a project was
an hour ago. Owns ``flow_marks``.

Only a project with a backlog needs it: what is not ahead of what its pool serves can start now anyway.
"""

from __future__ import annotations

from functions.db import Connection

MARK_S = 2.0
"""As exact as head starts are."""

MARK_FLOWS = """
-- mark_flows
INSERT INTO flow_marks (project_id, at, f)
SELECT project_id, now(), f FROM flows JOIN pool_clocks ON pool_clocks.pool = flows.pool WHERE f > v
ON CONFLICT DO NOTHING
"""

FORGET_MARKS = """
-- forget_marks
DELETE FROM flow_marks m USING flows JOIN pool_clocks ON pool_clocks.pool = flows.pool
 WHERE flows.project_id = m.project_id AND (m.f <= pool_clocks.v OR m.at < now() - interval '25 hours')
"""


async def mark(conn: Connection) -> None:
    """Note where each project with a backlog is, and forget what no head start can need. Safe beside others."""
    await conn.execute(MARK_FLOWS)
    await conn.execute(FORGET_MARKS)

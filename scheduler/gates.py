"""Limits of functions: jobs of a key, jobs of a function, starts in a time. Owns ``gates`` and ``slots``.

A job passes its gates one after another, in the order of their levels, and holds a slot of each until it has ended; a
slot of a rate is held until ``per`` after the start. Slots are counted and never stored as a number. ``advance`` is the
only thing that lets a job through a gate: it is called after the commit of whatever brought a job or freed a slot, and
by a round for what was missed when a process died in between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NewType

from functions.db import Connection
from functions.errors import Unavailable
from functions.ids import FunctionId, JobId, ProjectId
from functions.queue_spec import BY_KEY, IN_TOTAL, OF_STARTS, GateSpec, Queue

GateId = NewType("GateId", int)

AT_ONCE = 500
"""Jobs that one statement lets through a gate."""
TRIES = 5
"""Gates that are found, made or forgotten by others meanwhile are looked for again."""

FIND_GATES = """
-- find_gates
SELECT gates.id, gates.function_id, gates.level, gates.key, gates.used_at < now() - interval '1 day' AS stale
  FROM unnest($1::uuid[], $2::smallint[], $3::bytea[]) w (function_id, level, key)
  JOIN gates ON gates.function_id = w.function_id AND gates.level = w.level AND gates.key = w.key
"""

MAKE_GATES = """
-- make_gates
INSERT INTO gates (project_id, function_id, level, key, lim, per)
SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::smallint[], $4::bytea[], $5::int[], $6::interval[])
ON CONFLICT DO NOTHING
"""

TOUCH_GATES = """
-- touch_gates
UPDATE gates SET used_at = now()
 WHERE id = ANY (ARRAY(SELECT id FROM gates WHERE id = ANY ($1) ORDER BY level, id FOR NO KEY UPDATE))
RETURNING id
"""

SET_LIMITS = """
-- set_limits
UPDATE gates SET lim = coalesce(w.lim, gates.lim), per = coalesce(w.per, gates.per)
  FROM unnest($2::smallint[], $3::int[], $4::interval[]) w (level, lim, per)
 WHERE gates.level = w.level AND gates.id = ANY (ARRAY(
        SELECT id FROM gates WHERE function_id = $1 ORDER BY level, id FOR NO KEY UPDATE))
   AND (gates.lim, gates.per) IS DISTINCT FROM (w.lim, w.per)
"""

WAITED_FOR = """
-- gates_waited_for
SELECT id, level FROM gates
 WHERE id = ANY ($1) AND EXISTS (SELECT 1 FROM waiting_jobs WHERE stage = 'gated' AND gate_id = gates.id)
"""

WAITED_FOR_OF_FUNCTION = """
-- gates_waited_for_of_function
SELECT id FROM gates
 WHERE function_id = $1 AND EXISTS (SELECT 1 FROM waiting_jobs WHERE stage = 'gated' AND gate_id = gates.id)
"""

# One gate after another, however many jobs wait at each.
ALL_WAITED_FOR = """
-- all_gates_waited_for
WITH RECURSIVE walk AS (
    (SELECT gate_id FROM waiting_jobs WHERE stage = 'gated' ORDER BY gate_id LIMIT 1)
    UNION ALL
    SELECT (SELECT gate_id FROM waiting_jobs WHERE stage = 'gated' AND gate_id > walk.gate_id
             ORDER BY gate_id LIMIT 1)
      FROM walk WHERE walk.gate_id IS NOT NULL
)
SELECT gate_id FROM walk WHERE gate_id IS NOT NULL
"""

# A statement of its own: what waits for a lock counts by what it saw before.
LOCK_GATES = """
-- lock_gates
SELECT id FROM gates WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE
"""

ADMIT_JOBS = """
-- admit_jobs
WITH room AS (
    -- Of a deleted function only what has run before goes on.
    SELECT gates.id, functions.deleted_at, gates.lim - (SELECT count(*) FROM slots
                                   WHERE slots.gate_id = gates.id AND (until IS NULL OR until > now())) AS free
      FROM gates JOIN functions ON functions.id = gates.function_id
     WHERE gates.id = ANY ($1) AND functions.paused_at IS NULL
), first AS (
    SELECT w.* FROM room CROSS JOIN LATERAL (
        SELECT * FROM waiting_jobs
         WHERE stage = 'gated' AND gate_id = room.id AND (room.deleted_at IS NULL OR attempt > 0)
         ORDER BY head, job_id LIMIT least(greatest(room.free, 0), $2::int)
           FOR UPDATE SKIP LOCKED) w
), through AS (
    SELECT first.*, gates[array_position(gates, gate_id) + 1] AS next_id FROM first
), given AS (
    INSERT INTO slots (gate_id, job_id, attempt) SELECT gate_id, job_id, attempt FROM through
), onward AS (
    UPDATE waiting_jobs SET gate_id = through.next_id FROM through
     WHERE waiting_jobs.project_id = through.project_id AND waiting_jobs.job_id = through.job_id
       AND through.next_id IS NOT NULL
), out AS (
    DELETE FROM waiting_jobs USING through
     WHERE waiting_jobs.project_id = through.project_id AND waiting_jobs.job_id = through.job_id
       AND through.next_id IS NULL
    RETURNING waiting_jobs.*
), placed AS (
    -- Virtual time is given now: at submit, a function that waits for its limit would hold up the project's others.
    SELECT o.*, flows.weight, greatest(flows.f, pool_clocks.v, 0) AS behind,
           CASE WHEN o.head_start IS NULL THEN greatest(flows.f, pool_clocks.v, 0)
                ELSE greatest(pool_clocks.v, 0, (
                    SELECT m.f FROM flow_marks m WHERE m.project_id = o.project_id AND m.at <= now() - o.head_start
                     ORDER BY m.at DESC LIMIT 1)) END AS start,
           row_number() OVER (PARTITION BY o.project_id ORDER BY o.head, o.job_id) AS turn
      FROM out o
      LEFT JOIN flows ON flows.project_id = o.project_id
      LEFT JOIN pool_clocks ON pool_clocks.pool = o.pool
), top AS (
    SELECT project_id, max(behind + turn / coalesce(weight, 1)) AS vt FROM placed GROUP BY project_id
), free AS (
    SELECT project_id FROM flows WHERE project_id IN (SELECT project_id FROM top) FOR NO KEY UPDATE SKIP LOCKED
), pushed AS (
    UPDATE flows SET f = greatest(flows.f, top.vt) FROM top
     WHERE flows.project_id = top.project_id AND flows.project_id IN (SELECT project_id FROM free)
), ready AS (
    INSERT INTO ready_jobs (job_id, vt, pool, project_id, lane, cls, attempt, losses, queued_at, ttl_at, cancel_at,
                            gates, head_start)
    SELECT job_id, start + (turn - 1) / coalesce(weight, 1), pool, project_id, lane, cls, attempt, losses, queued_at,
           ttl_at, cancel_at, gates, head_start
      FROM placed
)
SELECT gate_id, next_id, gates.level AS next_level FROM through LEFT JOIN gates ON gates.id = through.next_id
"""

FREE_SLOTS = """
-- free_slots
DELETE FROM slots WHERE until IS NULL AND job_id = ANY ($1)
"""

# Only rates have an end in their slots.
FREE_STARTS = """
-- free_starts
DELETE FROM slots WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM slots WHERE until IS NOT NULL AND until <= now() ORDER BY until LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING gate_id
"""

NEXT_START = """
-- next_start
SELECT extract(epoch FROM until - clock_timestamp())::float8 FROM slots WHERE until IS NOT NULL ORDER BY until LIMIT 1
"""

FORGET_GATES = """
-- forget_gates
DELETE FROM gates WHERE id = ANY (ARRAY(
    SELECT id FROM gates
     WHERE used_at < now() - interval '2 days'
       AND NOT EXISTS (SELECT 1 FROM slots WHERE slots.gate_id = gates.id)
       AND id NOT IN (SELECT unnest(w.gates) FROM waiting_jobs w WHERE w.gates IS NOT NULL)
       AND id NOT IN (SELECT unnest(l.gates) FROM leases l WHERE l.gates IS NOT NULL)
     ORDER BY used_at LIMIT $1
       FOR UPDATE SKIP LOCKED))
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A gate that a job must pass."""

    project_id: ProjectId
    function_id: FunctionId
    spec: GateSpec

    @property
    def name(self) -> tuple[FunctionId, int, bytes]:
        return self.function_id, self.spec.level, self.spec.key


async def ensure(conn: Connection, wanted: Iterable[Wanted]) -> dict[tuple[FunctionId, int, bytes], GateId]:
    """The gates of these names; those that there are not yet are made, with their limits."""
    missing = {each.name: each for each in wanted}
    found: dict[tuple[FunctionId, int, bytes], GateId] = {}
    for _ in range(TRIES):
        names = sorted(missing)  # one order for all, or two of these would wait for each other's rows
        rows = await conn.fetch(FIND_GATES, *([name[part] for name in names] for part in range(3)))
        stale = [row["id"] for row in rows if row["stale"]]
        # One that was forgotten since it was found is made anew.
        touched = {row["id"] for row in await conn.fetch(TOUCH_GATES, stale)} if stale else set()
        for row in rows:
            if not row["stale"] or row["id"] in touched:
                name = row["function_id"], row["level"], row["key"]
                found[name] = row["id"]
                missing.pop(name)
        if not missing:
            return found
        new = [missing[name] for name in sorted(missing)]
        await conn.execute(
            MAKE_GATES, [each.project_id for each in new], [each.function_id for each in new],
            [each.spec.level for each in new], [each.spec.key for each in new], [each.spec.limit for each in new],
            [each.spec.per for each in new],
        )  # fmt: skip
    raise Unavailable("the limits of this function keep changing: try again")


async def set_limits(conn: Connection, function: FunctionId, queue: Queue | None) -> None:
    """Make the limits of a function those of its current version: they hold from the next admission on."""
    limits: list[tuple[int, int | None, object]] = []
    if queue is not None and queue.concurrency is not None:
        limits += [(BY_KEY, queue.concurrency.per_key, None), (IN_TOTAL, queue.concurrency.limit, None)]
    if queue is not None and queue.rate is not None:
        limits += [(OF_STARTS, queue.rate.limit, queue.rate.per)]
    limits = [each for each in limits if each[1] is not None]
    if limits:
        # Jobs that stand at a limit which there is no more are moved by ``relimiting``; then nobody uses its gates.
        await conn.execute(SET_LIMITS, function, *([each[part] for each in limits] for part in range(3)))


async def advance(
    conn: Connection,
    gates: Collection[GateId],
    *,
    within: Collection[GateId] | None = None,
    left: set[GateId] | None = None,
) -> int:
    """Let through what the gates have room for; how many jobs became claimable.

    In transactions of its own, after the commit of what freed the slots. Costs one statement when nobody waits. Inside
    of another transaction no gates may be locked but those that it holds: ``within``. ``left`` gets those to which jobs
    have come beside them, to be advanced after its commit.
    """
    waited = await conn.fetch(WAITED_FOR, list(gates)) if gates else []
    levels: dict[int, set[GateId]] = {BY_KEY: set(), IN_TOTAL: set(), OF_STARTS: set()}
    for row in waited:
        levels[row["level"]].add(row["id"])
    ready = 0
    while any(levels.values()):
        more: dict[int, set[GateId]] = {level: set() for level in levels}
        async with conn.transaction():
            # Level by level, and by id within one: everybody locks gates in this order.
            for level in sorted(levels):
                if not levels[level]:
                    continue
                locked = [row["id"] for row in await conn.fetch(LOCK_GATES, list(levels[level]))]
                rows = await conn.fetch(ADMIT_JOBS, locked, AT_ONCE)
                for row in rows:
                    if row["next_id"] is None:
                        ready += 1
                    elif within is None or row["next_id"] in within:
                        levels[row["next_level"]].add(row["next_id"])
                    elif left is not None:
                        left.add(row["next_id"])
                more[level] = _full(row["gate_id"] for row in rows)
        levels = more
    return ready


def _full(passed: Iterable[GateId]) -> set[GateId]:
    """Gates that may have room for more than one statement lets through."""
    counts: dict[GateId, int] = {}
    for gate in passed:
        counts[gate] = counts.get(gate, 0) + 1
    return {gate for gate, count in counts.items() if count == AT_ONCE}


async def advance_function(conn: Connection, function: FunctionId) -> int:
    """``advance`` for all gates of a function."""
    return await advance(conn, [row["id"] for row in await conn.fetch(WAITED_FOR_OF_FUNCTION, function)])


async def advance_all(conn: Connection) -> int:
    """``advance`` for all gates with waiters: what heals after a process that died before it could call it."""
    waited = [row["gate_id"] for row in await conn.fetch(ALL_WAITED_FOR)]
    return sum([await advance(conn, waited[first : first + 100]) for first in range(0, len(waited), 100)])


def note(rows: Iterable[Mapping[str, Any]], into: set[GateId] | None) -> None:
    """Add the ``gates`` of rows to those that are to be advanced after the commit."""
    if into is not None:
        into.update(gate for row in rows for gate in row["gates"] or ())


async def free(conn: Connection, jobs: Collection[JobId]) -> None:
    """Let go what jobs hold that were taken out of ``waiting_jobs``, in the transaction that did so.

    A statement of its own: the one that took a job out may have waited while it was let through a gate, and does not
    see the slot that it was given then.
    """
    if jobs:
        await conn.execute(FREE_SLOTS, list(jobs))


async def free_starts(conn: Connection, *, limit: int) -> list[GateId]:
    """Forget starts that no rate counts any more; the gates that they were of, one for each start."""
    return [row["gate_id"] for row in await conn.fetch(FREE_STARTS, limit)]


async def next_start_s(conn: Connection) -> float | None:
    """Seconds until the next start is counted no more; None when there is none."""
    left: float | None = await conn.fetchval(NEXT_START)
    return left


async def forget(conn: Connection, *, limit: int) -> int:
    """Delete gates that nobody has used for two days; how many."""
    return int((await conn.execute(FORGET_GATES, limit)).split()[-1])

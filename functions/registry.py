"""Functions by name: apply a manifest, look up, list, delete, roll back. Writes ``functions``.

A function has its metadata, which the last apply set, and points at its current version. A deleted one keeps its
versions for the jobs that they made, and its name is free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from functions import endpoints, ids, saved_images, schedules, secrets, versions, webhooks
from functions.chaining import check_targets
from functions.db import Connection, Row
from functions.errors import NotFound
from functions.ids import FunctionId, ProjectId
from functions.manifest import Manifest, Metadata
from functions.versions import Version, function_not_found, require_name

MOST_NUMBER = 2**31 - 1

LOCK_FUNCTION = """
-- lock_function
SELECT id, current_number, description, labels
  FROM functions
 WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL
   FOR UPDATE
"""

ADD_FUNCTION = """
-- add_function
INSERT INTO functions (id, project_id, name, current_number, description, labels) VALUES ($1, $2, $3, 1, $4, $5)
ON CONFLICT (project_id, name) WHERE deleted_at IS NULL DO NOTHING
RETURNING id
"""

UPDATE_FUNCTION = """
-- update_function
UPDATE functions SET description = $2, labels = $3, current_number = coalesce($4, current_number), updated_at = now(),
                     limits_changed_at = CASE WHEN $4 IS NULL THEN limits_changed_at ELSE now() END
 WHERE id = $1
"""

CURRENT_VERSION = """
-- current_version
SELECT v.id, v.image_digest, c.id AS current_id, c.image_digest AS current_digest
  FROM functions
  LEFT JOIN function_versions v
    ON v.function_id = functions.id AND v.number = coalesce($3::int, functions.current_number)
  LEFT JOIN function_versions c ON c.function_id = functions.id AND c.number = functions.current_number
 WHERE functions.project_id = $1 AND functions.name = $2 AND functions.deleted_at IS NULL
"""

GET_FUNCTION = """
-- get_function
SELECT functions.*, v.id AS version_id, v.image_digest
  FROM functions JOIN function_versions v ON v.function_id = functions.id AND v.number = functions.current_number
 WHERE functions.project_id = $1 AND functions.name = $2 AND functions.deleted_at IS NULL
"""

LIST_FUNCTIONS = """
-- list_functions
SELECT functions.*, v.id AS version_id, v.image_digest
  FROM functions JOIN function_versions v ON v.function_id = functions.id AND v.number = functions.current_number
 WHERE functions.project_id = $1 AND functions.deleted_at IS NULL AND ($3::uuid IS NULL OR functions.id < $3)
   AND ($4::jsonb IS NULL OR functions.labels::jsonb @> $4)
 ORDER BY functions.id DESC
 LIMIT $2
"""

DELETE_FUNCTION = """
-- delete_function
-- Its running jobs may still be retried, and nobody could resume a function that is gone.
UPDATE functions SET deleted_at = now(), updated_at = now(), paused_at = NULL
 WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL
RETURNING id
"""

ROLL_BACK = """
-- roll_back
UPDATE functions SET current_number = v.number, updated_at = now(), limits_changed_at = now()
  FROM function_versions v
 WHERE functions.project_id = $1 AND functions.name = $2 AND functions.deleted_at IS NULL
   AND v.function_id = functions.id AND v.number = $3
"""

SET_PAUSED = """
-- set_paused
UPDATE functions SET paused_at = CASE WHEN $3 THEN coalesce(paused_at, now()) END
 WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL
"""


CHANGED_LIMITS = """
-- changed_limits
SELECT functions.id, functions.project_id, functions.limits_changed_at, v.id AS version_id
  FROM functions JOIN function_versions v ON v.function_id = functions.id AND v.number = functions.current_number
 WHERE functions.limits_changed_at IS NOT NULL AND functions.deleted_at IS NULL
   AND ($1::uuid IS NULL OR functions.id = $1)
 ORDER BY functions.limits_changed_at LIMIT $2
"""

LIMITS_HOLD = """
-- limits_hold
UPDATE functions SET limits_changed_at = NULL
 WHERE id = $1 AND limits_changed_at = $2 AND limits_changed_at < now() - $3::interval
"""


@dataclass(frozen=True, slots=True)
class ChangedLimits:
    """A function whose current ``version`` became another one lately: jobs may still stand at the limits of the one
    before."""

    function: FunctionId
    project: ProjectId
    version: Version
    at: datetime


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """``version`` is the current one; its manifest has the metadata of the function as it is now."""

    id: FunctionId
    name: str
    version: Version
    created_at: datetime
    updated_at: datetime
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """``created``: there was no function of this name. ``changed``: something of it is not as it was."""

    function: FunctionRow
    created: bool
    changed: bool


async def apply(conn: Connection, project: ProjectId, manifest: Manifest) -> Applied:
    """Make the function what the manifest says, in one transaction; safe beside other applies of the same name.

    Another spec than the current one becomes a version, also if an earlier version had it; other metadata changes
    the function only.
    """
    name, metadata = manifest.metadata.name, manifest.metadata
    labels = json.dumps(metadata.labels, ensure_ascii=False, sort_keys=True)
    async with conn.transaction():
        await check_targets(conn, project, name, manifest.spec.callbacks)
        await secrets.require(conn, project, secrets.places_of(manifest))
        await saved_images.require(conn, project, manifest.spec.job.image)
        created = False
        while (held := await _lock(conn, project, name)) is None:
            function = FunctionId(ids.new_uuid7())
            # Nothing is written when somebody else has just made it: then it can be locked now.
            if await conn.fetchval(ADD_FUNCTION, function, project, name, metadata.description, labels):
                created = True
        function = held["id"]
        number = None
        # Not read with the lock: who waits for a lock gets the new row, joined with others as they were before.
        if await versions.hash_at(conn, function, held["current_number"]) != versions.hash_of(manifest):
            number = await versions.add(conn, project, function, manifest)
        changed = number is not None or (held["description"], json.loads(held["labels"])) != (
            metadata.description,
            metadata.labels,
        )
        if changed and not created:
            await conn.execute(UPDATE_FUNCTION, function, metadata.description, labels, number)
        await _sync_triggers(conn, project, function, manifest)
        return Applied(await get(conn, project, name), created, changed)


async def one_off(conn: Connection, project: ProjectId, manifest: Manifest) -> Version:
    """The version for a job without a function, in the caller's transaction; raises ``Invalid`` as ``apply`` does."""
    await check_targets(conn, project, None, manifest.spec.callbacks)
    await secrets.require(conn, project, secrets.places_of(manifest))
    await saved_images.require(conn, project, manifest.spec.job.image)
    return await versions.one_off(conn, project, manifest)


async def current(conn: Connection, project: ProjectId, name: str, *, number: int | None = None) -> Version:
    """The function's current version, or the one of that number (which knows the current one, too); raises
    ``NotFound``."""
    require_name(name)
    row = await conn.fetchrow(CURRENT_VERSION, project, name, None if number is None else _number(name, number))
    if row is None:
        raise function_not_found(name)
    if row["id"] is None:
        raise _version_not_found(name, number)
    digests = {row["id"]: row["image_digest"], row["current_id"]: row["current_digest"]}
    found = await versions.with_digests(conn, digests)
    version = found[row["id"]]
    return version if row["id"] == row["current_id"] else replace(version, current=found[row["current_id"]])


async def get(conn: Connection, project: ProjectId, name: str) -> FunctionRow:
    """Raises ``NotFound``."""
    function = await find(conn, project, name)
    if function is None:
        raise function_not_found(name)
    return function


async def find(conn: Connection, project: ProjectId, name: str) -> FunctionRow | None:
    """None if there is no such function; raises ``NotFound`` for what is no name."""
    require_name(name)
    rows = await conn.fetch(GET_FUNCTION, project, name)
    return (await _functions(conn, rows))[0] if rows else None


async def list_functions(
    conn: Connection,
    project: ProjectId,
    *,
    limit: int,
    before: FunctionId | None,
    labels: Mapping[str, str] | None = None,
) -> list[FunctionRow]:
    """Functions that are not deleted, newest first, those made before ``before`` and with all of the labels."""
    wanted = json.dumps(dict(labels), ensure_ascii=False) if labels else None
    return await _functions(conn, await conn.fetch(LIST_FUNCTIONS, project, limit, before, wanted))


async def delete(conn: Connection, project: ProjectId, name: str) -> FunctionId:
    """Take the name away; raises ``NotFound``. Ending the function's jobs is up to the caller."""
    require_name(name)
    function = await conn.fetchval(DELETE_FUNCTION, project, name)
    if function is None:
        raise function_not_found(name)
    await webhooks.forget(conn, function)
    await schedules.forget(conn, function)
    await endpoints.sync(conn, project, FunctionId(function), ())
    return FunctionId(function)


async def rollback(conn: Connection, project: ProjectId, name: str, number: int) -> FunctionRow:
    """Make an earlier version the current one again, in the caller's transaction; raises ``NotFound``, or ``Invalid``
    when its callbacks would now lead back to it. The next new one gets a number of its own."""
    version = await current(conn, project, name, number=number)
    await check_targets(conn, project, name, version.manifest.spec.callbacks, exist=False)
    if await conn.execute(ROLL_BACK, project, name, _number(name, number)) == "UPDATE 0":
        await get(conn, project, name)  # raises if it is the function that is missing
        raise _version_not_found(name, number)
    function = await get(conn, project, name)
    await _sync_triggers(conn, project, function.id, version.manifest)
    return function


async def set_paused(conn: Connection, project: ProjectId, name: str, *, paused: bool) -> FunctionRow:
    """Say whether the function's jobs wait; raises ``NotFound``. Moving the jobs is up to the caller."""
    require_name(name)
    await conn.execute(SET_PAUSED, project, name, paused)
    return await get(conn, project, name)


async def changed_limits(
    conn: Connection, *, limit: int, function: FunctionId | None = None
) -> list[ChangedLimits]:
    """Functions (or that one) whose limits do not hold for all of their jobs yet, the change of longest ago first."""
    rows = await conn.fetch(CHANGED_LIMITS, function, limit)
    found = await versions.by_ids(conn, [row["version_id"] for row in rows])
    return [
        ChangedLimits(row["id"], row["project_id"], found[row["version_id"]], row["limits_changed_at"]) for row in rows
    ]


async def limits_hold(conn: Connection, changed: ChangedLimits, *, after: timedelta) -> None:
    """Note that all jobs stand at the limits of this change; not before ``after`` it, when none is on its way into the
    queue any more that was made before."""
    await conn.execute(LIMITS_HOLD, changed.function, changed.at, after)


async def _sync_triggers(conn: Connection, project: ProjectId, function: FunctionId, manifest: Manifest) -> None:
    """Rows of what the manifest says may invoke the function, and of whom its jobs tell; its row is locked."""
    triggers = manifest.spec.triggers
    await webhooks.sync(conn, project, function, () if triggers is None else triggers.webhooks)
    await schedules.sync(conn, project, function, () if triggers is None else triggers.schedules)
    await endpoints.sync(conn, project, function, manifest.spec.callbacks)


async def _lock(conn: Connection, project: ProjectId, name: str) -> Row | None:
    return await conn.fetchrow(LOCK_FUNCTION, project, name)


async def _functions(conn: Connection, rows: Sequence[Row]) -> list[FunctionRow]:
    found = await versions.with_digests(conn, {row["version_id"]: row["image_digest"] for row in rows})
    return [_function(row, found[row["version_id"]]) for row in rows]


def _function(row: Row, version: Version) -> FunctionRow:
    metadata = Metadata(name=row["name"], description=row["description"], labels=json.loads(row["labels"]))
    manifest = version.manifest.model_copy(update={"metadata": metadata})
    return FunctionRow(
        row["id"],
        row["name"],
        replace(version, manifest=manifest),
        row["created_at"],
        row["updated_at"],
        row["paused_at"] is not None,
    )


def _number(name: str, number: int) -> int:
    if not 1 <= number <= MOST_NUMBER:
        raise _version_not_found(name, number)
    return number


def _version_not_found(name: str, number: int | None) -> NotFound:
    return NotFound(f"function {name} has no version {number}", code="version_not_found")

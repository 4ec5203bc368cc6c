"""Endpoints of callbacks: where a project's events go. Owns ``callback_endpoints``; ``endpoint_health`` has part of it.

Those that a manifest names have rows, too, kept by applies of their function. What a job of a version tells whom is
said by the version's manifest; the row is who that is: what its messages are signed with, whether it is disabled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from functions import faults, ids
from functions.db import Connection, Row
from functions.endpoint_health import DISABLED_BY_HAND
from functions.errors import Conflict, NotFound
from functions.faults import Fault
from functions.grammar import Callback
from functions.ids import EndpointId, FunctionId, ProjectId

MOST_ENDPOINTS = 100
"""Of a project, those of manifests not counted."""
UNUSED = timedelta(days=30)
"""After so long jobs of versions that named an endpoint are few, and tell it without its row."""

SYNC_ENDPOINTS = """
-- sync_endpoints
WITH given AS (
    SELECT * FROM json_to_recordset($3::json) g (id uuid, url text, events text[], secrets text[])
), kept AS (
    INSERT INTO callback_endpoints AS e (id, project_id, function_id, url, events, secrets)
    SELECT id, $1, $2, url, events, secrets FROM given
    ON CONFLICT (function_id, url) WHERE function_id IS NOT NULL DO UPDATE
       SET events = EXCLUDED.events, secrets = EXCLUDED.secrets, retired_at = NULL, updated_at = now(),
           -- Named again, it begins anew.
           disabled_at = CASE WHEN e.retired_at IS NULL THEN e.disabled_at END,
           disabled_reason = CASE WHEN e.retired_at IS NULL THEN e.disabled_reason END,
           failing_since = CASE WHEN e.retired_at IS NULL THEN e.failing_since END
     WHERE (e.events, e.secrets, e.retired_at) IS DISTINCT FROM (EXCLUDED.events, EXCLUDED.secrets, NULL)
)
UPDATE callback_endpoints SET retired_at = now(), updated_at = now()
 WHERE function_id = $2 AND retired_at IS NULL AND url <> ALL (ARRAY(SELECT url FROM given))
"""

LOCK_PROJECT = """
-- lock_project_of_endpoints
SELECT (SELECT count(*) FROM callback_endpoints WHERE project_id = projects.id AND function_id IS NULL)
  FROM projects WHERE id = $1 FOR NO KEY UPDATE
"""

ADD_ENDPOINT = """
-- add_endpoint
INSERT INTO callback_endpoints (id, project_id, url, events, functions, description, secrets, signing_key,
                                disabled_at, disabled_reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, CASE WHEN $9::text IS NOT NULL THEN now() END, $9)
"""

LIST_ENDPOINTS = """
-- list_endpoints
SELECT e.*, functions.name AS function,
       (SELECT max(expires_at) FROM retired_keys WHERE endpoint_id = e.id AND expires_at > now()) AS rotating_until
  FROM callback_endpoints e LEFT JOIN functions ON functions.id = e.function_id
 WHERE e.project_id = $1 AND e.retired_at IS NULL
   AND ($2::uuid IS NULL OR e.id = $2)
   AND ($3::text IS NULL OR functions.name = $3 OR $3 = ANY (e.functions))
   AND ($4::uuid IS NULL OR e.id < $4)
 ORDER BY e.id DESC LIMIT $5
"""

LOCK_ENDPOINT = """
-- lock_endpoint
SELECT * FROM callback_endpoints WHERE project_id = $1 AND id = $2 AND retired_at IS NULL FOR NO KEY UPDATE
"""

CHANGE_ENDPOINT = """
-- change_endpoint
UPDATE callback_endpoints SET url = $2, events = $3, functions = $4, description = $5, secrets = $6, updated_at = now(),
       signing_key = CASE WHEN $6::text[] IS NULL THEN signing_key END,
       failing_since = CASE WHEN url = $2 THEN failing_since END
 WHERE id = $1
"""

DELETE_ENDPOINT = """
-- delete_endpoint
DELETE FROM callback_endpoints WHERE id = $1
"""

SET_KEY = """
-- set_key_of_endpoint
UPDATE callback_endpoints SET signing_key = $2, updated_at = now() WHERE id = $1
"""

FORGET_RETIRED = """
-- forget_retired_endpoints
DELETE FROM callback_endpoints WHERE id = ANY (ARRAY(
    SELECT id FROM callback_endpoints WHERE retired_at < now() - $2::interval LIMIT $1 FOR UPDATE SKIP LOCKED))
"""

KNOWN_FUNCTIONS = """
-- known_functions
SELECT name FROM functions WHERE project_id = $1 AND name = ANY ($2) AND deleted_at IS NULL
"""

CHANGEABLE = ("url", "events", "functions", "description", "secrets")


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """``signing_key`` is sealed; one of it and ``secrets`` is given."""

    url: str
    events: tuple[str, ...]
    functions: tuple[str, ...] | None
    description: str
    secrets: tuple[str, ...] | None
    signing_key: bytes | None
    enabled: bool


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """``function`` names the function whose manifest it stands in. ``rotating_until``: an older key signs along."""

    id: EndpointId
    function: str | None
    url: str
    events: tuple[str, ...]
    functions: tuple[str, ...] | None
    description: str
    secrets: tuple[str, ...] | None
    has_key: bool
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    rotating_until: datetime | None
    created_at: datetime
    updated_at: datetime


async def sync(conn: Connection, project: ProjectId, function: FunctionId, callbacks: Sequence[Callback]) -> None:
    """Make the function's endpoints those of its current manifest, in the transaction of what made it current."""
    given = [
        {
            "id": str(ids.new_uuid7()),
            "url": each.url,
            "events": each.events,
            "secrets": each.secret,
        }
        for each in callbacks
        if each.url is not None
    ]
    await conn.execute(SYNC_ENDPOINTS, project, function, json.dumps(given))


async def add(conn: Connection, project: ProjectId, new: NewEndpoint) -> EndpointRow:
    """Write an endpoint of the project, in the caller's transaction; raises ``Conflict`` when there are too many."""
    if await conn.fetchval(LOCK_PROJECT, project) >= MOST_ENDPOINTS:
        raise Conflict(f"the project has {MOST_ENDPOINTS} endpoints, which is the most", code="too_many_callbacks")
    endpoint = EndpointId(ids.new_uuid7())
    await conn.execute(
        ADD_ENDPOINT, endpoint, project, new.url, new.events, new.functions, new.description, new.secrets,
        new.signing_key, None if new.enabled else DISABLED_BY_HAND,
    )  # fmt: skip
    return await read(conn, project, endpoint)


async def require_functions(conn: Connection, project: ProjectId, places: Mapping[str, str]) -> None:
    """Raise ``Invalid`` with a pointer to each function (pointer → name) that the project does not have."""
    known = {row["name"] for row in await conn.fetch(KNOWN_FUNCTIONS, project, list(places.values()))}
    faults.raise_all(
        [
            Fault(place, f"there is no function {name}", "function_not_found")
            for place, name in places.items()
            if name not in known
        ]
    )


async def read(conn: Connection, project: ProjectId, endpoint: EndpointId) -> EndpointRow:
    """Raises ``NotFound``."""
    rows = await conn.fetch(LIST_ENDPOINTS, project, endpoint, None, None, 1)
    if not rows:
        raise not_found(endpoint)
    return _row(rows[0])


async def list_endpoints(
    conn: Connection, project: ProjectId, *, function: str | None = None, limit: int, before: UUID | None
) -> list[EndpointRow]:
    """Newest first, those of manifests as well; with ``function`` those of it, or that ask for it by name."""
    return [_row(row) for row in await conn.fetch(LIST_ENDPOINTS, project, None, function, before, limit)]


async def change(conn: Connection, project: ProjectId, endpoint: EndpointId, changes: Mapping[str, Any]) -> None:
    """Set some of ``url``, ``events``, ``functions``, ``description`` and ``secrets``, in the caller's transaction.
    Where project secrets sign, a key of its own is gone.

    Raises ``NotFound``, or ``Conflict`` for one that stands in a manifest.
    """
    row = await _lock_own(conn, project, endpoint)
    if changes:
        values = {name: changes.get(name, row[name]) for name in CHANGEABLE}
        await conn.execute(CHANGE_ENDPOINT, endpoint, *values.values())


async def delete(conn: Connection, project: ProjectId, endpoint: EndpointId) -> None:
    """Raises ``NotFound``, or ``Conflict`` for one that stands in a manifest. Ending its deliveries is up to the
    caller, in the same transaction."""
    await _lock_own(conn, project, endpoint)
    await conn.execute(DELETE_ENDPOINT, endpoint)


async def lock_for_rotation(conn: Connection, project: ProjectId, endpoint: EndpointId) -> bytes:
    """The endpoint's own key, sealed, locked until the transaction's end.

    Raises ``NotFound``, or ``Conflict`` for one that has none.
    """
    row = await conn.fetchrow(LOCK_ENDPOINT, project, endpoint)
    if row is None:
        raise not_found(endpoint)
    if row["signing_key"] is None:
        by = (
            "the project's key: rotate that one"
            if row["secrets"] is None
            else f"the project secret {row['secrets'][0]}: name a second one beside it, and drop the first one later"
        )
        raise Conflict(f"what this endpoint is sent is signed with {by}", code="callback_without_key")
    return bytes(row["signing_key"])


async def set_key(conn: Connection, endpoint: EndpointId, sealed: bytes) -> None:
    await conn.execute(SET_KEY, endpoint, sealed)


async def forget_retired(conn: Connection, *, limit: int, unused: timedelta = UNUSED) -> int:
    """Delete rows that no manifest has named for long; how many."""
    return int((await conn.execute(FORGET_RETIRED, limit, unused)).split()[-1])


def not_found(endpoint: EndpointId) -> NotFound:
    return NotFound(f"there is no callback {ids.encode(ids.CALLBACK, endpoint)}", code="callback_not_found")


async def _lock_own(conn: Connection, project: ProjectId, endpoint: EndpointId) -> Row:
    row = await conn.fetchrow(LOCK_ENDPOINT, project, endpoint)
    if row is None:
        raise not_found(endpoint)
    if row["function_id"] is not None:
        raise Conflict(
            "this callback stands in the manifest of a function: change it there and apply it",
            code="callback_of_manifest",
        )
    return row


def _row(row: Row) -> EndpointRow:
    return EndpointRow(
        row["id"], row["function"], row["url"], tuple(row["events"]), _tuple(row["functions"]), row["description"],
        _tuple(row["secrets"]), row["signing_key"] is not None, row["failing_since"], row["disabled_at"],
        row["disabled_reason"], row["rotating_until"], row["created_at"], row["updated_at"],
    )  # fmt: skip


def _tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)

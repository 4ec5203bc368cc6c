"""Endpoints of callbacks: where a project's events go. Owns ``callback_endpoints``.

Those that a manifest names have rows, too, kept by applies of their function. What a job of a version tells whom is
said by the version's manifest; the row is who that is: what its messages are signed with, whether it is disabled.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from functions import faults, ids
from functions.db import Connection, Row
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

DISABLE_ENDPOINT = """
-- disable_endpoint
UPDATE callback_endpoints SET disabled_at = now(), disabled_reason = $3, updated_at = now()
 WHERE project_id = $1 AND id = $2 AND disabled_at IS NULL
RETURNING id
"""

# By the row as it is now: it may have been given another address meanwhile, or have taken another message.
DISABLE_BY_ANSWER = """
-- disable_endpoint_by_answer
UPDATE callback_endpoints SET disabled_at = now(), disabled_reason = $4, updated_at = now()
 WHERE project_id = $1 AND id = $2 AND url = $3 AND disabled_at IS NULL
   AND ($5::interval IS NULL OR failing_since <= now() - $5::interval)
RETURNING id
"""

READ_DISABLED = """
-- read_disabled_endpoint
SELECT e.url, functions.name AS function, e.failing_since, e.disabled_at, e.disabled_reason
  FROM callback_endpoints e LEFT JOIN functions ON functions.id = e.function_id
 WHERE e.project_id = $1 AND e.id = $2
"""

ENABLE_ENDPOINT = """
-- enable_endpoint
UPDATE callback_endpoints SET disabled_at = NULL, disabled_reason = NULL, failing_since = NULL, updated_at = now()
 WHERE project_id = $1 AND id = $2 AND disabled_at IS NOT NULL
"""

# One that fails, or does not, changes nothing by doing so again.
NOTE_ANSWER = """
-- note_answer_of_endpoint
UPDATE callback_endpoints SET failing_since = CASE WHEN $2 THEN NULL ELSE now() END
 WHERE id = $1 AND (failing_since IS NULL) <> $2
"""

SET_KEY = """
-- set_key_of_endpoint
UPDATE callback_endpoints SET signing_key = $2, updated_at = now() WHERE id = $1
"""

LISTENERS = """
-- listeners
SELECT id, function_id, url, events, functions, disabled_at IS NULL AS enabled FROM callback_endpoints
 WHERE project_id = $1 AND coalesce(function_id, '00000000-0000-0000-0000-000000000000') = ANY ($2::uuid[])
"""

FOR_SENDING = """
-- endpoints_for_sending
SELECT id, disabled_reason, failing_since, secrets, signing_key FROM callback_endpoints
 WHERE project_id = $1 AND id = ANY ($2)
"""

STATES = """
-- states_of_endpoints
SELECT id, url, disabled_at IS NULL AS enabled, updated_at FROM callback_endpoints WHERE project_id = $1
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

PROJECT_WIDE = UUID(int=0)
"""In place of a function, for endpoints that are of none."""
DISABLED_BY_HAND = "disabled by hand"
CHANGEABLE = ("url", "events", "functions", "description", "secrets")


@dataclass(frozen=True, slots=True)
class Listener:
    """An endpoint as far as it decides what is told to it. ``function_id`` is that of the manifest that names it."""

    id: EndpointId
    function_id: FunctionId | None
    url: str
    events: tuple[str, ...]
    functions: tuple[str, ...] | None
    enabled: bool

    def wants(self, kind: str, function: str | None) -> bool:
        """Whether an endpoint of the project hears of this event of a function's, or of a job without one."""
        return kind in self.events and (self.functions is None or function in self.functions)


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


@dataclass(frozen=True, slots=True)
class Sendable:
    """An endpoint as its sender needs it: what signs, and whether it is sent anything at all."""

    id: EndpointId
    disabled_reason: str | None
    failing_since: datetime | None
    secrets: tuple[str, ...] | None
    signing_key: bytes | None


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint as another server that sends for us has to know it."""

    id: EndpointId
    url: str
    enabled: bool
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Disabled:
    """What there is to tell of an endpoint that is sent nothing more; ``function`` as in ``EndpointRow``."""

    url: str
    function: str | None
    failing_since: datetime | None
    disabled_at: datetime
    disabled_reason: str


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


async def disable(conn: Connection, project: ProjectId, endpoint: EndpointId, reason: str) -> bool:
    """Send it nothing more; False if it is disabled already, or gone. Ending what waits is up to the caller."""
    return await conn.fetchval(DISABLE_ENDPOINT, project, endpoint, reason) is not None


async def disable_by_answer(
    conn: Connection,
    project: ProjectId,
    endpoint: EndpointId,
    url: str,
    reason: str,
    *,
    failing_for: timedelta | None = None,
) -> bool:
    """Like ``disable``, for what came of a message to ``url``; with ``failing_for`` if none was taken for so long."""
    return await conn.fetchval(DISABLE_BY_ANSWER, project, endpoint, url, reason, failing_for) is not None


async def read_disabled(conn: Connection, project: ProjectId, endpoint: EndpointId) -> Disabled:
    """One that was disabled in this transaction, whether a manifest still names it or not."""
    row = await conn.fetchrow(READ_DISABLED, project, endpoint)
    assert row is not None
    return Disabled(**row)


async def enable(conn: Connection, project: ProjectId, endpoint: EndpointId) -> None:
    """Send it what comes from now on."""
    await conn.execute(ENABLE_ENDPOINT, project, endpoint)


async def note_answer(conn: Connection, endpoint: EndpointId, *, good: bool) -> None:
    """Whether it took a message: ``failing_since`` begins with the first one that it did not, and ends with the next
    that it does."""
    await conn.execute(NOTE_ANSWER, endpoint, good)


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


async def listeners(conn: Connection, project: ProjectId, functions: Iterable[FunctionId | None]) -> list[Listener]:
    """The project's endpoints and those of these functions, disabled ones included, in no set order."""
    wanted = {PROJECT_WIDE, *(function for function in functions if function is not None)}
    return [listener(row) for row in await conn.fetch(LISTENERS, project, list(wanted))]


def listener(row: Mapping[str, Any]) -> Listener:
    """Of a row, or of one that a statement has made JSON of."""
    function, asked = row["function_id"], row["functions"]
    return Listener(
        EndpointId(_uuid(row["id"])),
        None if function is None else FunctionId(_uuid(function)),
        row["url"],
        tuple(row["events"]),
        None if asked is None else tuple(asked),
        row["enabled"],
    )


def _uuid(value: UUID | str) -> UUID:
    return UUID(value) if isinstance(value, str) else value


async def for_sending(
    conn: Connection, project: ProjectId, wanted: Collection[EndpointId]
) -> dict[EndpointId, Sendable]:
    """Those of the endpoints that there still are."""
    if not wanted:
        return {}
    return {
        row["id"]: Sendable(
            row["id"], row["disabled_reason"], row["failing_since"], _tuple(row["secrets"]), row["signing_key"]
        )
        for row in await conn.fetch(FOR_SENDING, project, list(wanted))
    }


async def states(conn: Connection, project: ProjectId) -> list[EndpointState]:
    """All of the project's endpoints, those that no manifest names any more as well."""
    return [EndpointState(**row) for row in await conn.fetch(STATES, project)]


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

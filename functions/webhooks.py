"""The webhooks of functions. Writes ``webhooks``.

Those of a manifest are rows that an apply makes, changes and takes away in its own transaction; those of the API
(origin ``api``) are the caller's, and survive applies. A function that is deleted takes all of them with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal, NamedTuple

from functions import faults, ids, versions
from functions.db import Connection, Row
from functions.documents import pointer
from functions.errors import Conflict, NotFound
from functions.faults import Fault
from functions.ids import FunctionId, ProjectId, WebhookId
from functions.names import NAME
from functions.versions import Version
from functions.webhook_spec import MOST_WEBHOOKS, WebhookSpec, stored_webhook

Origin = Literal["manifest", "api"]
MOST_OF_A_FUNCTION = 5 * MOST_WEBHOOKS

NAMES_TAKEN = """
-- webhook_names_taken
SELECT name FROM webhooks WHERE function_id = $1 AND origin = 'api' AND name = ANY ($2)
"""

SYNC_WEBHOOKS = """
-- sync_webhooks
WITH wanted AS (
    SELECT * FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[]) w (id, name, spec, secrets)
), gone AS (
    DELETE FROM webhooks WHERE function_id = $2 AND origin = 'manifest' AND name <> ALL ($4)
)
INSERT INTO webhooks (id, project_id, function_id, name, origin, spec, secrets)
SELECT id, $1, $2, name, 'manifest', spec::json, secrets::text[] FROM wanted
ON CONFLICT (function_id, name) DO UPDATE
   SET spec = EXCLUDED.spec, secrets = EXCLUDED.secrets, updated_at = now()
 WHERE webhooks.spec::text <> EXCLUDED.spec::text
"""

LOCK_NAMED_FUNCTION = """
-- lock_function_of_webhook
SELECT id FROM functions WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL FOR NO KEY UPDATE
"""

COUNT_WEBHOOKS = """
-- count_webhooks
SELECT count(*) FROM webhooks WHERE function_id = $1
"""

ADD_WEBHOOK = """
-- add_webhook
INSERT INTO webhooks (id, project_id, function_id, name, origin, spec, secrets) VALUES ($1, $2, $3, $4, 'api', $5, $6)
ON CONFLICT DO NOTHING
RETURNING id
"""

FORGET_WEBHOOKS = """
-- forget_webhooks_of_function
DELETE FROM webhooks WHERE function_id = $1
"""

DELETE_WEBHOOK = """
-- delete_webhook
DELETE FROM webhooks WHERE project_id = $1 AND id = $2 AND origin = 'api' RETURNING id
"""

SET_ENABLED = """
-- set_webhook_enabled
UPDATE webhooks SET disabled_at = CASE WHEN NOT $3 THEN coalesce(disabled_at, now()) END, updated_at = now()
 WHERE project_id = $1 AND id = $2
"""

LIST_WEBHOOKS = """
-- list_webhooks
SELECT webhooks.*, functions.name AS function
  FROM webhooks JOIN functions ON functions.id = webhooks.function_id
 WHERE webhooks.project_id = $1 AND functions.deleted_at IS NULL
   AND ($3::uuid IS NULL OR webhooks.id < $3) AND ($4::text IS NULL OR functions.name = $4)
   AND ($5::text IS NULL OR webhooks.name = $5)
 ORDER BY webhooks.id DESC
 LIMIT $2
"""

GET_WEBHOOK = """
-- get_webhook
SELECT webhooks.*, functions.name AS function
  FROM webhooks JOIN functions ON functions.id = webhooks.function_id
 WHERE webhooks.project_id = $1 AND webhooks.id = $2 AND functions.deleted_at IS NULL
"""

# All that a request needs, in one look: what is verified with, and what runs. One row of each after the other: joined
# freely, a plan that was made while the tables were empty would go over all of them.
FIND_CALLED = """
-- find_called_webhooks
SELECT called.ord, w.id, w.project_id, w.spec, w.disabled_at IS NULL AS enabled, v.id AS version_id, v.image_digest,
       ARRAY(SELECT held.sealed
               FROM unnest(w.secrets) WITH ORDINALITY wanted (name, ord)
              CROSS JOIN LATERAL (SELECT sealed FROM secrets
                                   WHERE project_id = w.project_id AND secrets.name = wanted.name LIMIT 1) held
              ORDER BY wanted.ord) AS sealed
  FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY called (project, function, name, ord)
 CROSS JOIN LATERAL (SELECT id FROM projects WHERE slug = called.project LIMIT 1) p
 CROSS JOIN LATERAL (SELECT id, current_number FROM functions
                      WHERE project_id = p.id AND functions.name = called.function AND deleted_at IS NULL LIMIT 1) f
 CROSS JOIN LATERAL (SELECT * FROM webhooks WHERE function_id = f.id AND webhooks.name = called.name LIMIT 1) w
 CROSS JOIN LATERAL (SELECT id, image_digest FROM function_versions
                      WHERE function_id = f.id AND number = f.current_number LIMIT 1) v
"""


@dataclass(frozen=True, slots=True)
class WebhookRow:
    id: WebhookId
    project_id: ProjectId
    function: str
    origin: Origin
    spec: WebhookSpec
    enabled: bool
    created_at: datetime
    updated_at: datetime


class Address(NamedTuple):
    """``/hooks/{project}/{function}/{webhook}``."""

    project: str
    function: str
    webhook: str


@dataclass(frozen=True, slots=True)
class Called:
    """A webhook that somebody calls. ``sealed`` are those of its secrets that the project has."""

    id: WebhookId
    project_id: ProjectId
    spec: WebhookSpec
    enabled: bool
    version: Version
    sealed: tuple[bytes, ...]


async def sync(conn: Connection, project: ProjectId, function: FunctionId, wanted: Sequence[WebhookSpec]) -> None:
    """Make the function's webhooks those of its manifest, in the transaction that changes it.

    Raises ``Invalid`` with a pointer to each whose name one of the API has.
    """
    names = [each.name for each in wanted]
    if names:
        taken = {row["name"] for row in await conn.fetch(NAMES_TAKEN, function, names)}
        faults.raise_all(
            [
                Fault(
                    pointer("spec", "triggers", "webhooks", index, "name"),
                    f"the function has a webhook {name} that was made over the API: delete that, or take another name",
                    "webhook_exists",
                )
                for index, name in enumerate(names)
                if name in taken
            ]
        )
    await conn.execute(
        SYNC_WEBHOOKS, project, function, [ids.new_uuid7() for _ in wanted], names,
        [json.dumps(each.stored(), ensure_ascii=False) for each in wanted],
        ["{" + ",".join(each.secret or ()) + "}" for each in wanted],
    )  # fmt: skip


async def forget(conn: Connection, function: FunctionId) -> None:
    """Take all of a function's webhooks away: nothing may call it any more."""
    await conn.execute(FORGET_WEBHOOKS, function)


async def add(conn: Connection, project: ProjectId, function: str, spec: WebhookSpec) -> WebhookRow:
    """A webhook of the API, in the caller's transaction; raises ``NotFound`` and ``Conflict``."""
    versions.require_name(function)
    # A delete that comes now waits, and takes this one with it.
    owner = await conn.fetchval(LOCK_NAMED_FUNCTION, project, function)
    if owner is None:
        raise versions.function_not_found(function)
    if await conn.fetchval(COUNT_WEBHOOKS, owner) >= MOST_OF_A_FUNCTION:
        raise Conflict(f"a function has no more than {MOST_OF_A_FUNCTION} webhooks", code="limit_reached")
    webhook = WebhookId(ids.new_uuid7())
    text = json.dumps(spec.stored(), ensure_ascii=False)
    if await conn.fetchval(ADD_WEBHOOK, webhook, project, owner, spec.name, text, list(spec.secret or ())) is None:
        raise Conflict(f"the function {function} has a webhook {spec.name}", code="webhook_exists")
    return await get(conn, project, webhook)


async def delete(conn: Connection, project: ProjectId, webhook: WebhookId) -> None:
    """Raises ``NotFound``, or ``Conflict`` for one of a manifest."""
    if await conn.fetchval(DELETE_WEBHOOK, project, webhook) is None:
        found = await get(conn, project, webhook)
        raise Conflict(
            f"the webhook is of the manifest of {found.function}: take it out there, or disable it",
            code="webhook_of_manifest",
        )


async def set_enabled(conn: Connection, project: ProjectId, webhook: WebhookId, *, enabled: bool) -> WebhookRow:
    """Say whether it may be called; raises ``NotFound``. An apply does not change it."""
    await conn.execute(SET_ENABLED, project, webhook, enabled)
    return await get(conn, project, webhook)


async def get(conn: Connection, project: ProjectId, webhook: WebhookId) -> WebhookRow:
    """Raises ``NotFound``."""
    row = await conn.fetchrow(GET_WEBHOOK, project, webhook)
    if row is None:
        raise not_found()
    return _row(row)


async def list_webhooks(
    conn: Connection,
    project: ProjectId,
    *,
    limit: int,
    before: WebhookId | None,
    function: str | None = None,
    name: str | None = None,
) -> list[WebhookRow]:
    """Newest first, those made before ``before``; of one function, or of one name."""
    return [_row(row) for row in await conn.fetch(LIST_WEBHOOKS, project, limit, before, function, name)]


async def find_called(conn: Connection, addresses: Sequence[Address]) -> dict[Address, Called]:
    """The webhooks at these addresses, with what verifies their calls; those that are there."""
    wanted = [each for each in addresses if all(NAME.fullmatch(part) for part in each)]
    if not wanted:
        return {}
    rows = await conn.fetch(
        FIND_CALLED, [each.project for each in wanted], [each.function for each in wanted],
        [each.webhook for each in wanted],
    )  # fmt: skip
    found = await versions.with_digests(conn, {row["version_id"]: row["image_digest"] for row in rows})
    return {
        wanted[row["ord"] - 1]: Called(
            row["id"], row["project_id"], _parsed(row["spec"]), row["enabled"], found[row["version_id"]],
            tuple(row["sealed"]),
        )
        for row in rows
    }  # fmt: skip


def not_found() -> NotFound:
    """The same for whatever is not there, so that nobody learns which part of it is."""
    return NotFound("there is no such webhook", code="webhook_not_found")


@lru_cache(maxsize=256)
def _parsed(text: str) -> WebhookSpec:
    return stored_webhook(json.loads(text))


def _row(row: Row) -> WebhookRow:
    return WebhookRow(
        row["id"], row["project_id"], row["function"], row["origin"], _parsed(row["spec"]),
        row["disabled_at"] is None, row["created_at"], row["updated_at"],
    )  # fmt: skip

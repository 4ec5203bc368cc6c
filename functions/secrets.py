"""A project's secrets: written, never read back but for a lease. Owns ``secrets``.

A version of a function names those that it needs, and gets what they hold when an attempt starts: a value that was
replaced since reaches the next attempt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from functions import faults, ids
from functions.db import Connection
from functions.documents import pointer, shown
from functions.errors import NotFound, RGridError, Unavailable
from functions.faults import Fault
from functions.grammar import Manifest
from functions.ids import ProjectId
from functions.jobspec import check_secret_name
from functions.sealing import Sealer
from functions.secret_names import places_of_names

LARGEST_BYTES = 64 * 1024
TOGETHER_BYTES = 512 * 1024
"""Of one job: they stand in its environment, which Linux bounds."""

PUT_NAMED = """
-- set_secret
INSERT INTO secrets (id, project_id, name, sealed) VALUES ($1, $2, $3, $4)
ON CONFLICT (project_id, name) DO UPDATE SET sealed = EXCLUDED.sealed, updated_at = now()
RETURNING id, name, created_at, updated_at, id = $1 AS created
"""

LIST_SECRETS = """
-- list_secrets
SELECT id, name, created_at, updated_at FROM secrets
 WHERE project_id = $1 AND ($3::uuid IS NULL OR id < $3)
 ORDER BY id DESC
 LIMIT $2
"""

USED_BY = """
-- functions_using_secrets
SELECT functions.name, v.secrets
  FROM functions JOIN function_versions v ON v.function_id = functions.id AND v.number = functions.current_number
 WHERE functions.project_id = $1 AND functions.deleted_at IS NULL AND v.secrets && $2::text[]
UNION ALL
SELECT functions.name, webhooks.secrets
  FROM functions JOIN webhooks ON webhooks.function_id = functions.id
 WHERE functions.project_id = $1 AND functions.deleted_at IS NULL AND webhooks.secrets && $2::text[]
UNION ALL
SELECT coalesce(functions.name, 'cb_' || replace(e.id::text, '-', '')), e.secrets
  FROM callback_endpoints e LEFT JOIN functions ON functions.id = e.function_id
 WHERE e.project_id = $1 AND e.retired_at IS NULL AND e.secrets && $2::text[]
 ORDER BY name
"""

DELETE_NAMED = """
-- delete_secret
DELETE FROM secrets WHERE project_id = $1 AND name = $2
"""

KNOWN_SECRETS = """
-- known_secrets
SELECT name FROM secrets WHERE project_id = $1 AND name = ANY ($2)
"""

SEALED_SECRETS = """
-- sealed_secrets
SELECT name, sealed FROM secrets WHERE project_id = $1 AND name = ANY ($2)
"""


class SecretMissing(RGridError):
    """A job needs a secret that its project does not have (any more)."""

    code = "secret_missing"


class SecretUnusable(RGridError):
    """A job needs a secret that cannot be given to it as it is."""


@dataclass(frozen=True, slots=True)
class Secret:
    """``used_by``: functions that name it, in triggers and callbacks too; and ids of callbacks of the project."""

    id: UUID
    name: str
    used_by: tuple[str, ...]
    created_at: datetime
    updated_at: datetime


async def put(conn: Connection, sealer: Sealer, project: ProjectId, name: str, value: bytes) -> tuple[Secret, bool]:
    """Set a secret; whether it is a new one. The caller has checked name and value."""
    row = await conn.fetchrow(PUT_NAMED, ids.new_uuid7(), project, name, sealer.seal(value))
    assert row is not None
    used = await _used_by(conn, project, [name])
    return Secret(row["id"], name, used[name], row["created_at"], row["updated_at"]), row["created"]


async def list_secrets(conn: Connection, project: ProjectId, *, limit: int, before: UUID | None) -> list[Secret]:
    """Newest first, those made before ``before``."""
    rows = await conn.fetch(LIST_SECRETS, project, limit, before)
    used = await _used_by(conn, project, [row["name"] for row in rows])
    return [Secret(row["id"], row["name"], used[row["name"]], row["created_at"], row["updated_at"]) for row in rows]


async def _used_by(conn: Connection, project: ProjectId, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    used: dict[str, list[str]] = {name: [] for name in names}
    for row in await conn.fetch(USED_BY, project, list(names)) if names else ():
        for name in row["secrets"]:
            if name in used and row["name"] not in used[name]:
                used[name].append(row["name"])
    return {name: tuple(functions) for name, functions in used.items()}


async def delete(conn: Connection, project: ProjectId, name: str) -> None:
    """Forget a secret, whoever names it: their jobs fail until there is one again. Raises ``NotFound``."""
    try:
        check_secret_name(name)
    except ValueError:
        raise _not_found(name) from None  # the database need not be asked, nor could it be with a NUL
    if await conn.execute(DELETE_NAMED, project, name) == "DELETE 0":
        raise _not_found(name)


def places_of(manifest: Manifest) -> dict[str, str]:
    """Pointer into the manifest → name of each secret that it needs."""
    places = {f"/spec/job{place}": name for place, name in manifest.spec.job.secret_places.items()}
    for index, webhook in enumerate(() if manifest.spec.triggers is None else manifest.spec.triggers.webhooks):
        at = pointer("spec", "triggers", "webhooks", index)
        places |= {at + place: name for place, name in webhook.secret_places.items()}
    for index, callback in enumerate(manifest.spec.callbacks):
        if callback.secret is not None:
            places |= places_of_names(callback.secret, pointer("spec", "callbacks", index, "secret"))
    return places


async def require(conn: Connection, project: ProjectId, places: Mapping[str, str]) -> None:
    """Raise ``Invalid`` with a pointer to each secret (pointer → name) that the project does not have."""
    if not places:
        return
    known = {row["name"] for row in await conn.fetch(KNOWN_SECRETS, project, list(set(places.values())))}
    faults.raise_all(
        [
            Fault(place, f"the project has no secret {name}: set it first", "secret_missing")
            for place, name in places.items()
            if name not in known
        ]
    )


async def values(conn: Connection, sealer: Sealer, project: ProjectId, names: Collection[str]) -> dict[str, str]:
    """What the secrets hold, for a lease. Raises ``SecretMissing`` or ``SecretUnusable``."""
    if not names:
        return {}
    sealed = {row["name"]: row["sealed"] for row in await conn.fetch(SEALED_SECRETS, project, list(names))}
    if missing := sorted(set(names) - sealed.keys()):
        raise SecretMissing(f"the project has no secret {', '.join(missing)} (any more): set it and retry the job")
    opened = {}
    for name in names:
        try:
            opened[name] = sealer.open(sealed[name]).decode()
        except Unavailable:
            # This job's trouble: other jobs must not wait for it.
            raise SecretUnusable(
                f"the secret {name} does not open with the keys of this installation: set it again"
            ) from None
    if sum(len(value.encode()) for value in opened.values()) > TOGETHER_BYTES:
        raise SecretUnusable(f"the job's secrets have more than {TOGETHER_BYTES // 1024} KiB together")
    return opened


def _not_found(name: str) -> NotFound:
    return NotFound(f"there is no secret {shown(name)}", code="secret_not_found")

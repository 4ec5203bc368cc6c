"""The keys that a project's callbacks are signed with, and those that still sign along after a rotation.

Owns ``projects.callback_secret``, ``projects.signing_key`` and ``retired_keys``. All are sealed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from functions import endpoint_health, endpoints, ids, secrets, signing
from functions.db import Connection, Row
from functions.endpoint_health import Sendable
from functions.errors import Conflict, RGridError, Unavailable
from functions.ids import EndpointId, ProjectId
from functions.sealing import Sealer
from functions.secrets import SecretMissing, SecretUnusable
from functions.signing import Signer

MOST_RETIRED = 3
"""Of one kind at once: each of them makes every message longer."""

PROJECT_KEYS = """
-- project_keys
SELECT callback_secret, signing_key FROM projects WHERE id = $1
"""

LOCK_PROJECT_KEYS = """
-- lock_project_keys
SELECT callback_secret, signing_key FROM projects WHERE id = $1 FOR NO KEY UPDATE
"""

REPLACE_SHARED = """
-- set_callback_secret
UPDATE projects SET callback_secret = $2 WHERE id = $1
"""

REPLACE_SIGNING = """
-- set_signing_key
UPDATE projects SET signing_key = $2 WHERE id = $1
"""

# Whoever comes second keeps the first one's.
MAKE_PROJECT_KEY = """
-- make_signing_key
UPDATE projects SET signing_key = coalesce(signing_key, $2) WHERE id = $1 RETURNING signing_key
"""

RETIRED_KEYS = """
-- retired_keys
SELECT endpoint_id, algorithm, sealed, retired_at, expires_at FROM retired_keys
 WHERE project_id = $1 AND expires_at > now() AND (endpoint_id IS NULL OR endpoint_id = ANY ($2))
 ORDER BY retired_at DESC, id DESC
"""

COUNT_RETIRED = """
-- count_retired_keys
SELECT count(*) FROM retired_keys
 WHERE project_id = $1 AND endpoint_id IS NOT DISTINCT FROM $2 AND algorithm = $3 AND expires_at > now()
"""

RETIRE_KEY = """
-- retire_key
INSERT INTO retired_keys (id, project_id, endpoint_id, algorithm, sealed, expires_at)
VALUES ($1, $2, $3, $4, $5, now() + $6::interval)
RETURNING expires_at
"""

END_RETIRED = """
-- end_retired_keys
DELETE FROM retired_keys WHERE project_id = $1 AND endpoint_id IS NOT DISTINCT FROM $2 AND algorithm = $3
"""

FORGET_RETIRED = """
-- forget_retired_keys
DELETE FROM retired_keys WHERE id = ANY (ARRAY(
    SELECT id FROM retired_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
"""

HMAC, ED25519 = "hmac", "ed25519"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """``text`` is ``whpk_…``. ``expires_at``: until when it signs along, None for the current one."""

    text: str
    pem: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Rotated:
    """``previous_until`` is None if what was before signs no more."""

    secret: str
    previous_until: datetime | None


Wanted = tuple[EndpointId | None, tuple[str, ...] | None]
"""Who a message is for: an endpoint, or else the project secrets that its job's manifest names."""


async def signers(
    conn: Connection,
    sealer: Sealer,
    project: ProjectId,
    found: Mapping[EndpointId, Sendable],
    wanted: Collection[Wanted],
) -> dict[Wanted, Signer | RGridError]:
    """What signs the messages of a project, or why nothing can; raises ``Unavailable`` when its own keys do not open.

    An endpoint that is not in ``found`` is passed over.
    """
    own = await _keys_of_project(conn, sealer, project)
    retired = await conn.fetch(RETIRED_KEYS, project, list(found))
    keys = (own[1], *(signing.private_key(sealer.open(row["sealed"])) for row in _of(retired, None, ED25519)))
    shared = (own[0], *(_opened(sealer, row["sealed"]) for row in _of(retired, None, HMAC)))
    answer: dict[Wanted, Signer | RGridError] = {}
    for each in wanted:
        endpoint, named = each
        row = None if endpoint is None else found.get(endpoint)
        if endpoint is not None and row is None:
            continue
        named = named if row is None else row.secrets
        try:
            if named is not None:
                answer[each] = Signer(await _named(conn, sealer, project, named), keys)
            elif row is not None and row.signing_key is not None:
                old = (_opened(sealer, rest["sealed"]) for rest in _of(retired, row.id, HMAC))
                answer[each] = Signer((_opened(sealer, row.signing_key), *old), keys)
            else:
                answer[each] = Signer(shared, keys)
        except (SecretMissing, SecretUnusable, Unavailable) as error:
            answer[each] = error
    return answer


async def _keys_of_project(
    conn: Connection, sealer: Sealer, project: ProjectId
) -> tuple[bytes, Ed25519PrivateKey]:
    row = await conn.fetchrow(PROJECT_KEYS, project)
    assert row is not None
    kept = row["signing_key"] or await _make_key(conn, sealer, project)
    return _opened(sealer, row["callback_secret"]), signing.private_key(sealer.open(kept))


async def _make_key(conn: Connection, sealer: Sealer, project: ProjectId) -> bytes:
    return bytes(await conn.fetchval(MAKE_PROJECT_KEY, project, sealer.seal(signing.new_key())))


async def _named(conn: Connection, sealer: Sealer, project: ProjectId, names: tuple[str, ...]) -> tuple[bytes, ...]:
    values = await secrets.values(conn, sealer, project, names)
    keys = []
    for name in names:
        try:
            keys.append(signing.secret_bytes(values[name]))
        except ValueError as error:
            raise SecretUnusable(f"the secret {name} cannot sign: {error}") from None
    return tuple(keys)


def _of(rows: list[Row], endpoint: EndpointId | None, algorithm: str) -> list[Row]:
    return [row for row in rows if (row["endpoint_id"], row["algorithm"]) == (endpoint, algorithm)]


def _opened(sealer: Sealer, sealed: bytes) -> bytes:
    return signing.secret_bytes(sealer.open(sealed).decode())


async def project_secret(conn: Connection, sealer: Sealer, project: ProjectId) -> str:
    """The ``whsec_…`` of the project, which signs whatever has no secret of its own."""
    row = await conn.fetchrow(PROJECT_KEYS, project)
    assert row is not None
    return sealer.open(row["callback_secret"]).decode()


async def endpoint_secret(conn: Connection, sealer: Sealer, project: ProjectId, endpoint: EndpointId) -> str:
    """What signs an endpoint's messages now, as text: its own key, or the project's.

    Raises ``NotFound``, or ``Conflict`` where project secrets sign: nothing shows what those hold.
    """
    await endpoints.read(conn, project, endpoint)  # raises for one that is retired
    row = (await endpoint_health.for_sending(conn, project, [endpoint]))[endpoint]
    if row.secrets is not None:
        raise Conflict(
            f"the project secret {row.secrets[0]} signs it, and no call shows what a secret holds",
            code="callback_without_key",
        )
    if row.signing_key is None:
        return await project_secret(conn, sealer, project)
    return sealer.open(row.signing_key).decode()


async def public_keys(conn: Connection, sealer: Sealer, project: ProjectId) -> list[PublicKey]:
    """The public halves of the keys that sign now, the current one first."""
    row = await conn.fetchrow(PROJECT_KEYS, project)
    assert row is not None
    kept = sealer.open(row["signing_key"] or await _make_key(conn, sealer, project))
    found = [PublicKey(signing.public_text(kept), signing.public_pem(kept), None)]
    for old in _of(await conn.fetch(RETIRED_KEYS, project, []), None, ED25519):
        kept = sealer.open(old["sealed"])
        found.append(PublicKey(signing.public_text(kept), signing.public_pem(kept), old["expires_at"]))
    return found


async def rotate_project_secret(
    conn: Connection, sealer: Sealer, project: ProjectId, overlap: timedelta
) -> Rotated:
    """Give the project a new secret, in the caller's transaction; the old one signs along for ``overlap``."""
    row = await conn.fetchrow(LOCK_PROJECT_KEYS, project)
    assert row is not None
    secret = signing.new_secret()
    until = await _retire(conn, (project, None, HMAC), row["callback_secret"], overlap)
    await conn.execute(REPLACE_SHARED, project, sealer.seal(secret.encode()))
    return Rotated(secret, until)


async def rotate_project_key(
    conn: Connection, sealer: Sealer, project: ProjectId, overlap: timedelta
) -> None:
    """Give the project a new ed25519 key, in the caller's transaction; the old one signs along for ``overlap``."""
    row = await conn.fetchrow(LOCK_PROJECT_KEYS, project)
    assert row is not None
    if row["signing_key"] is not None:
        await _retire(conn, (project, None, ED25519), row["signing_key"], overlap)
    await conn.execute(REPLACE_SIGNING, project, sealer.seal(signing.new_key()))


async def rotate_endpoint(
    conn: Connection, sealer: Sealer, project: ProjectId, endpoint: EndpointId, overlap: timedelta
) -> Rotated:
    """Give an endpoint a new secret, in the caller's transaction; the old one signs along for ``overlap``.

    Raises ``NotFound``, or ``Conflict`` for an endpoint without a secret of its own.
    """
    before = await endpoints.lock_for_rotation(conn, project, endpoint)
    secret = signing.new_secret()
    until = await _retire(conn, (project, endpoint, HMAC), before, overlap)
    await endpoints.set_key(conn, endpoint, sealer.seal(secret.encode()))
    return Rotated(secret, until)


async def _retire(
    conn: Connection, whose: tuple[ProjectId, EndpointId | None, str], sealed: bytes, overlap: timedelta
) -> datetime | None:
    """Keep a key that is being replaced for a while. Without ``overlap`` none signs along any more: it may be known
    to strangers."""
    if not overlap:
        await conn.execute(END_RETIRED, *whose)
        return None
    if await conn.fetchval(COUNT_RETIRED, *whose) >= MOST_RETIRED:
        raise Conflict(
            f"{MOST_RETIRED} earlier keys sign along still: wait until one of them is over, or rotate with overlap 0s",
            code="rotation_pending",
        )
    until: datetime = await conn.fetchval(RETIRE_KEY, ids.new_uuid7(), *whose, sealed, overlap)
    return until


async def forget_retired(conn: Connection, *, limit: int) -> int:
    """Delete keys that sign no more; how many."""
    return int((await conn.execute(FORGET_RETIRED, limit)).split()[-1])

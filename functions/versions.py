"""Versions of functions: immutable but for the image's digest, which the first pull fixes.

Writes ``function_versions``. A manifest is parsed once a process; what ``pin_digest`` changes is read each time.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from functions import expiring, ids
from functions.db import Connection, Row
from functions.documents import shown
from functions.errors import NotFound
from functions.grammar import LIVE
from functions.ids import FunctionId, ProjectId, VersionId
from functions.manifest import Manifest, stored_manifest
from functions.names import NAME
from functions.params import ParamsSchema
from functions.queue_spec import Queue

CACHED_VERSIONS = 1024
CACHED_BYTES = 16 * 1024 * 1024
"""Of manifests as text; parsed they take some five times that."""

DIGESTS_OF = """
-- digests_of_versions
SELECT id, image_digest FROM function_versions WHERE id = ANY ($1)
"""

READ_VERSIONS = """
-- read_versions
SELECT v.id, v.project_id, v.function_id, functions.name, v.number, v.manifest, v.created_at
  FROM function_versions v LEFT JOIN functions ON functions.id = v.function_id
 WHERE v.id = ANY ($1)
"""

LIST_VERSIONS = """
-- list_versions
SELECT v.id
  FROM functions JOIN function_versions v ON v.function_id = functions.id
 WHERE functions.project_id = $1 AND functions.name = $2 AND functions.deleted_at IS NULL
   AND ($4::int IS NULL OR v.number < $4)
 ORDER BY v.number DESC
 LIMIT $3
"""

FUNCTION_EXISTS = """
-- function_exists
SELECT EXISTS (SELECT 1 FROM functions WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL)
"""

HASH_AT = """
-- manifest_hash_at
SELECT manifest_hash FROM function_versions WHERE function_id = $1 AND number = $2
"""

ADD_VERSION = """
-- add_version
INSERT INTO function_versions (id, project_id, function_id, number, manifest, manifest_hash, secrets, live_events)
SELECT $1, $2, $3, coalesce(max(number), 0) + 1, $4, $5, $6, $7 FROM function_versions WHERE function_id = $3
RETURNING number
"""

FIND_ONE_OFF = """
-- find_one_off_version
SELECT id FROM function_versions
 WHERE project_id = $1 AND manifest_hash = $2 AND function_id IS NULL AND used_at > now() - $3::interval
"""

USE_ONE_OFF = """
-- use_one_off_version
INSERT INTO function_versions (id, project_id, number, manifest, manifest_hash, secrets, live_events)
VALUES ($1, $2, 1, $3, $4, $5, $6)
ON CONFLICT (project_id, manifest_hash) WHERE function_id IS NULL DO UPDATE SET used_at = now()
RETURNING id
"""

FORGET_ONE_OFFS = """
-- forget_one_off_versions
DELETE FROM function_versions WHERE id = ANY (ARRAY(
    SELECT id FROM function_versions v
     WHERE function_id IS NULL AND used_at < now() - $2::interval
       AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.version_id = v.id AND jobs.function_id IS NULL)
     ORDER BY used_at LIMIT $1 FOR UPDATE SKIP LOCKED))
"""

USE_NOTED = timedelta(hours=1)
"""Runs of one spec write so often that it is used, and no oftener."""
UNUSED = timedelta(days=1)
"""Far longer than that: no job is on its way into the queue with a version that nobody has used for so long."""

PIN_DIGEST = """
-- pin_digest
UPDATE function_versions SET image_digest = $2 WHERE id = $1 AND image_digest IS NULL
"""


@dataclass(frozen=True, slots=True)
class Version:
    """``function_id`` and ``function_name`` are None for a job without a function. ``current`` is the function's
    current version, where that is another one and whoever read this one wanted to know it."""

    id: VersionId
    project_id: ProjectId
    function_id: FunctionId | None
    function_name: str | None
    number: int
    manifest: Manifest
    params_schema: ParamsSchema
    image_digest: str | None
    created_at: datetime
    current: Version | None = None

    @property
    def limits(self) -> Queue:
        """What says how many jobs may run: for all versions it is what the current one says."""
        return (self.current or self).manifest.spec.queue or Queue()


class ParsedVersions:
    """The versions that were used last, without their digests; bounded by number and by text."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._left = most, most_bytes
        self._held: OrderedDict[VersionId, tuple[Version, int]] = OrderedDict()

    def get(self, version: VersionId) -> Version | None:
        held = self._held.get(version)
        if held is None:
            return None
        self._held.move_to_end(version)
        return held[0]

    def add(self, version: Version, size: int) -> None:
        if version.id in self._held:
            return
        self._held[version.id] = version, size
        self._left -= size
        while self._held and (len(self._held) > self._most or self._left < 0):
            _, (_, freed) = self._held.popitem(last=False)
            self._left += freed


_parsed = ParsedVersions(CACHED_VERSIONS, CACHED_BYTES)


def hash_of(manifest: Manifest) -> bytes:
    """Equal for manifests whose ``spec`` means the same; name, description and labels are the function's."""
    spec = json.dumps(manifest.stored()["spec"], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(spec.encode()).digest()


async def hash_at(conn: Connection, function: FunctionId, number: int) -> bytes | None:
    """``hash_of`` the manifest of a version; None if there is none of this number."""
    found: bytes | None = await conn.fetchval(HASH_AT, function, number)
    return found


async def by_ids(conn: Connection, versions: Iterable[VersionId]) -> dict[VersionId, Version]:
    """Those of the versions that exist, of any project."""
    digests = {row["id"]: row["image_digest"] for row in await conn.fetch(DIGESTS_OF, list(versions))}
    return await with_digests(conn, digests)


async def with_digests(conn: Connection, digests: dict[VersionId, str | None]) -> dict[VersionId, Version]:
    """The versions whose digests a statement has just read."""
    found = {version: held for version in digests if (held := _parsed.get(version)) is not None}
    if missing := digests.keys() - found.keys():
        for row in await conn.fetch(READ_VERSIONS, list(missing)):
            found[row["id"]] = version = _version(row)
            _parsed.add(version, len(row["manifest"]))
    return {version: replace(found[version], image_digest=digest) for version, digest in digests.items()}


async def list_versions(
    conn: Connection, project: ProjectId, name: str, *, limit: int, before: int | None
) -> list[Version]:
    """Versions of a function, newest first, those below the number ``before``; raises ``NotFound``."""
    require_name(name)
    rows = await conn.fetch(LIST_VERSIONS, project, name, limit, before)
    if not rows and not await conn.fetchval(FUNCTION_EXISTS, project, name):
        raise function_not_found(name)
    found = await by_ids(conn, [row["id"] for row in rows])
    return [found[row["id"]] for row in rows]


async def add(conn: Connection, project: ProjectId, function: FunctionId, manifest: Manifest) -> int:
    """Write the function's next version and return its number; the caller has locked the function's row."""
    text = json.dumps(manifest.stored(), ensure_ascii=False, separators=(",", ":"))
    secrets = sorted(set(manifest.spec.job.secret_places.values())) or None
    version = VersionId(ids.new_uuid7())
    number: int = await conn.fetchval(
        ADD_VERSION, version, project, function, text, hash_of(manifest), secrets, _live_events(manifest)
    )
    await expiring.note_named(conn, version, text)
    return number


async def one_off(conn: Connection, project: ProjectId, manifest: Manifest) -> Version:
    """The version of jobs without a function that have this spec: one for all of them, made by the first."""
    hashed = hash_of(manifest)
    version = await conn.fetchval(FIND_ONE_OFF, project, hashed, USE_NOTED)
    if version is None:
        text = json.dumps(manifest.stored(), ensure_ascii=False, separators=(",", ":"))
        secrets = sorted(set(manifest.spec.job.secret_places.values())) or None
        version = await conn.fetchval(
            USE_ONE_OFF, ids.new_uuid7(), project, text, hashed, secrets, _live_events(manifest)
        )
        await expiring.note_named(conn, version, text)
    return (await by_ids(conn, [version]))[version]


def _live_events(manifest: Manifest) -> list[str] | None:
    """Which events before a job's end its callbacks want to hear of: asked at every claim and heartbeat."""
    callbacks = [each for each in manifest.spec.callbacks if each.url is not None]
    return [kind for kind in LIVE if any(kind in each.events for each in callbacks)] or None


async def forget_one_offs(conn: Connection, *, limit: int) -> int:
    """Delete versions of jobs without a function that no job has any more; how many."""
    return int((await conn.execute(FORGET_ONE_OFFS, limit, UNUSED)).split()[-1])


async def pin_digest(conn: Connection, version: VersionId, digest: str) -> None:
    """Fix what the image's name stands for; the first digest stays, others change nothing."""
    await conn.execute(PIN_DIGEST, version, digest)


def require_name(name: str) -> None:
    """Raise ``NotFound`` for what is no name: the database need not be asked, nor could it be with a NUL."""
    if not NAME.fullmatch(name):
        raise function_not_found(name)


def function_not_found(name: str) -> NotFound:
    return NotFound(f"there is no function {shown(name)}", code="function_not_found")


def _version(row: Row) -> Version:
    document: Any = json.loads(row["manifest"])
    manifest = stored_manifest(document)
    return Version(
        id=row["id"],
        project_id=row["project_id"],
        function_id=row["function_id"],
        function_name=row["name"],
        number=row["number"],
        manifest=manifest,
        params_schema=ParamsSchema(manifest.spec.params),
        image_digest=None,
        created_at=row["created_at"],
    )

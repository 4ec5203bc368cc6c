"""PostgreSQL and the object store: reachable, of the right version, and able to do what RGrid asks of them."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import asyncpg
import httpx

from functions.bucket_owner import Owner, owner_of
from functions.errors import RGridError
from functions.s3 import S3Config, S3Store
from gateway.cli.doctor.findings import Finding, ok, warning, wrong
from gateway.database import OLDEST_POSTGRES, is_current

NEWEST_POSTGRES = 190_000
ANSWER_S = 5
SKEW = timedelta(seconds=60)
"""A store refuses signatures from a clock that is 15 minutes off; a minute is where something is wrong already."""


async def postgresql(url: str) -> AsyncIterator[Finding]:
    part = "postgresql"
    try:
        conn = await asyncpg.connect(url, timeout=ANSWER_S, command_timeout=ANSWER_S)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OverflowError, TimeoutError) as error:
        yield wrong(part, f"does not answer: {error or type(error).__name__}", "start it, or mend RGRID_DATABASE_URL")
        return
    try:
        number = int(await conn.fetchval("SELECT current_setting('server_version_num')"))
        found = str(await conn.fetchval("SELECT current_setting('server_version')"))
        if number < OLDEST_POSTGRES:
            yield wrong(part, found, "RGrid needs PostgreSQL 14 to 18")
        elif number >= NEWEST_POSTGRES:
            yield warning(part, found, "newer than RGrid is tested with: 14 to 18")
        else:
            yield ok(part, found)
        if await is_current(conn):
            yield ok("migrations", "all applied")
        else:
            yield wrong("migrations", "the schema is older than this release", "run `rgrid migrate`")
        skew = abs(await conn.fetchval("SELECT clock_timestamp()") - datetime.now(UTC))
        if skew > SKEW:
            yield warning(part, f"its clock is {skew.total_seconds():.0f} s off", "set both clocks by NTP")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        yield wrong(part, f"a query failed: {error or type(error).__name__}", "look into its log")
    finally:
        await conn.close(timeout=ANSWER_S)


async def object_store(config: S3Config) -> AsyncIterator[Finding]:
    """Write, read and remove a small object through presigned links, as nodes and users do."""
    part = "s3"
    async with S3Store(config) as store:
        try:
            # The store's own patience is that of the gateway, which can wait: minutes, with what it tries again.
            async with asyncio.timeout(ANSWER_S):
                await store.check()
        except (RGridError, TimeoutError) as error:
            said = error.message if isinstance(error, RGridError) else f"it does not answer within {ANSWER_S} s"
            yield wrong(
                part, f"{config.endpoint}, bucket {config.bucket}: {said}",
                "start it, or mend RGRID_S3_*; the gateway makes the bucket when it starts",
            )  # fmt: skip
            return
        key, content = f"doctor/{secrets.token_hex(8)}", secrets.token_bytes(64)
        try:
            async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as http:
                yield await _round_trip(store, http, config, key, content)
        finally:
            try:
                await store.delete([key])
            except RGridError as error:
                yield wrong(part, f"an object cannot be removed: {error.message}", "allow DeleteObject to the key")


async def bucket_owner(url: str, config: S3Config) -> AsyncIterator[Finding]:
    """Whether the bucket is this database's; says nothing where one of the two does not answer, others do."""
    try:
        async with asyncio.timeout(ANSWER_S), S3Store(config) as store:
            conn = await asyncpg.connect(url, timeout=ANSWER_S, command_timeout=ANSWER_S)
            try:
                owner = await owner_of(conn, store)
            finally:
                await conn.close(timeout=ANSWER_S)
    except (RGridError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OverflowError):
        return
    if owner is Owner.ANOTHER:
        yield warning(
            "bucket", f"{config.bucket} has files of another database",
            "orphans in it are not removed: give each installation a bucket of its own",
        )  # fmt: skip
    else:
        whose = "this database's" if owner is Owner.THIS else "nobody's yet, the scheduler takes it"
        yield ok("bucket", f"{config.bucket} is {whose}")


async def _round_trip(store: S3Store, http: httpx.AsyncClient, config: S3Config, key: str, content: bytes) -> Finding:
    part, public = "s3", config.public_endpoint
    md5, sha256 = hashlib.md5(content, usedforsecurity=False).hexdigest(), hashlib.sha256(content).hexdigest()
    url, headers = store.presign_put(key, len(content), md5, sha256, "application/octet-stream")
    try:
        put = await http.put(url, content=content, headers=headers)
        got = await http.get(store.presign_get(key, "doctor", "application/octet-stream", 60))
    except httpx.HTTPError as error:
        return wrong(
            part, f"{public} does not answer: {type(error).__name__}",
            "RGRID_S3_PUBLIC_ENDPOINT must be reachable by users and nodes",
        )  # fmt: skip
    if (skew := _skew(put)) is not None and skew > SKEW:
        found = f"its clock is {skew.total_seconds():.0f} s off"
        return wrong(part, found, "set both clocks by NTP: links depend on it")
    if not put.is_success or got.content != content:
        return wrong(
            part, f"{public}: PUT by link answered {put.status_code}, GET {got.status_code}",
            "allow PutObject and GetObject to the key of RGRID_S3_ACCESS_KEY_ID",
        )  # fmt: skip
    return ok(part, f"{public}, bucket {config.bucket}: put, get and delete by link")


def _skew(answer: httpx.Response) -> timedelta | None:
    try:
        return abs(parsedate_to_datetime(answer.headers["Date"]) - datetime.now(UTC))
    except (KeyError, TypeError, ValueError):
        return None

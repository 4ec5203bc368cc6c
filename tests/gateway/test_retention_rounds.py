"""The scheduler's own rounds of retention, with the operator's settings."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from functions.db import Pool
from functions.s3 import S3Store
from gateway.retention_rounds import retention_rounds
from tests.gateway.conftest import make_settings
from tests.s3 import S3Server
from tests.scheduler.factories import make_world
from tests.scheduler.test_retention import DAY, OUTPUTS, agree, finished, keys, uploaded


async def test_the_rounds_let_go_of_what_the_settings_say(
    database: str, s3_server: S3Server, pool: Pool, store: S3Store
) -> None:
    kept = {"retention_jobs": "2d", "retention_artifacts": "1d", "retention_logs": "12h"}
    settings = make_settings(database, s3_server, **kept)
    assert settings.retention_logs == timedelta(hours=12)
    world = await make_world(pool, job=OUTPUTS)
    rounds = retention_rounds(settings, pool, store)
    async with pool.acquire() as conn:
        for age in (DAY / 4, DAY * 0.75, DAY * 1.5, DAY * 3):
            await finished(conn, world, store, age=age)
        await uploaded(conn, world, store, age=2 * DAY)
        for _ in range(3):
            await conn.execute("UPDATE expiries SET due_at = least(due_at, now()) WHERE jobs_at <= now()")
            for each in rounds:
                await each.once()
        counts = [await conn.fetchval(f"SELECT count(*) FROM {table}") for table in ("jobs", "log_chunks")]
        assert counts == [3, 1]
        assert len(await keys(store)) == 2 and await agree(conn, store)


async def test_a_bucket_with_another_databases_files_is_left_alone_and_told_of_once(
    database: str, s3_server: S3Server, pool: Pool, store: S3Store
) -> None:
    await store.put(f"1/uploads/art_{'0' * 32}", b"a", "text/plain")
    (compare,) = [
        each for each in retention_rounds(make_settings(database, s3_server), pool, store)
        if each.name == "compare the store"
    ]  # fmt: skip
    with capture_logs() as logs:
        for _ in range(3):
            await compare.once()
    assert [each["event"] for each in logs] == ["the bucket has files of another database: orphans are left alone"]
    assert len(await keys(store)) == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("retention_jobs", "12h", "between 1d and 3650d"),
        ("retention_logs", "10s", "between 1m and 3650d"),
        ("retention_artifacts", "a week", "not a duration"),
        ("retention_artifacts", "4000d", "between 1m and 3650d"),
    ],
)
async def test_times_that_make_no_sense_are_refused(
    database: str, s3_server: S3Server, name: str, value: Any, words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        make_settings(database, s3_server, **{name: value})

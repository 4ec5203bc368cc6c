"""What finished jobs leave goes at its time, and nothing else does; store and database agree whatever dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from functions import artifacts, bucket_owner, expiring, ids
from functions.artifacts import NewFile
from functions.bucket_owner import Owner
from functions.db import Connection, Pool
from functions.errors import Gone, NotFound, Unavailable
from functions.ids import ArtifactId, BatchId, JobId, ProjectId
from functions.s3 import S3Store
from scheduler import batches, cancelling, finishing, inputs, jobs, logs, retention
from scheduler.batches import NewBatch
from scheduler.finishing import Report
from scheduler.retention import Expired, Keeping
from scheduler.views import job_object, read_jobs
from tests.scheduler.factories import LOOPBACK, World, claim_one, make_job, make_version, make_world, new_job
from tests.scheduler.links import NoLinks

DAY = timedelta(days=1)
KEEPING = Keeping(jobs=30 * DAY, artifacts=7 * DAY, logs=3 * DAY)
NOW = timedelta(0)
OUTPUTS = {"files": {"outputs": [{"path": "/out/*", "name": "file"}]}}
OF_A_JOB = (
    "jobs", "outcomes", "job_attempts", "log_chunks", "artifacts", "artifact_uses", "deliveries", "delivery_attempts",
    "chains", "expiries",
)  # fmt: skip

READER: dict[str, Any] = {"files": {"inputs": [{"path": "/in/a", "url": "{{ params.file }}"}]}}


@pytest.fixture
async def world(pool: Pool) -> World:
    return await make_world(pool, job=OUTPUTS, callbacks=[{"url": "http://127.0.0.1:1/"}])


async def finished(conn: Connection, world: World, store: S3Store, *, age: timedelta = NOW, files: int = 1) -> JobId:
    """A job of the world's that ended ``age`` ago, with a log and files in the store."""
    job = await make_job(conn, world.version)
    claimed = await claim_one(conn, world.node, world.account)
    assert claimed.job_id == job
    await logs.append(conn, world.node, job, claimed.token, 1, position=0, data=b"hello\n", cap=1000)
    new = [NewFile("file", f"/out/{n}", "text/plain", 3, "a" * 64, "b" * 32) for n in range(files)]
    made = await artifacts.reserve(conn, world.project, job, 1, new)
    for each in made:
        await store.put(each.object_key, b"abc", "text/plain")
    report = Report(claimed.token, "succeeded", exit_code=0, artifacts=tuple(each.id for each in made))
    async with conn.transaction():
        await finishing.finish(conn, world.node, job, report)
    await conn.execute("UPDATE outcomes SET finished_at = now() - $2::interval WHERE job_id = $1", job, age)
    return job


async def uploaded(conn: Connection, world: World, store: S3Store, *, age: timedelta = NOW) -> ArtifactId:
    """A complete upload that came ``age`` ago."""
    made = expiring.first_id(age).int | uuid4().int >> 48
    found = ArtifactId(UUID(int=made))
    key = f"{world.project}/uploads/{ids.encode(ids.ARTIFACT, found)}"
    await store.put(key, b"abc", "text/plain")
    await conn.execute(
        "INSERT INTO artifacts (id, project_id, name, content_type, size, sha256, md5, object_key, link_token,"
        " state, created_at) VALUES ($1, $2, 'f', 'text/plain', 3, $3, $4, $5, $5, 'complete', now() - $6::interval)",
        found, world.project, "a" * 64, "b" * 32, key, age,
    )  # fmt: skip
    return found


async def note(conn: Connection, keeping: Keeping = KEEPING) -> int:
    return await retention.note_once(conn, keeping, limit=100, settled=NOW)


async def rounds(world: World, store: S3Store, times: int = 4) -> None:
    """What the scheduler does again and again, until all of it is done."""
    async with world.pool.acquire() as conn:
        await note(conn)
        for _ in range(times):
            # Nobody waits here for what is looked at again later.
            await conn.execute("UPDATE expiries SET due_at = least(due_at, now()) WHERE jobs_at <= now()")
            await retention.expire_once(world.pool, limit=100)
            await expiring.expire_uploads(conn, None, age=KEEPING.artifacts, limit=100)
            await expiring.remove_once(world.pool, store, limit=100)


async def keys(store: S3Store) -> set[str]:
    return {each.key for each in await store.list_objects("", 1000)} - {bucket_owner.MARK}


async def agree(conn: Connection, store: S3Store) -> bool:
    """Whether exactly the files that are said to be kept are in the store."""
    rows = await conn.fetch("SELECT object_key FROM artifacts WHERE state IN ('pending', 'complete')")
    return await keys(store) == {row["object_key"] for row in rows}


async def rows_of(conn: Connection) -> dict[str, int]:
    return {table: await conn.fetchval(f"SELECT count(*) FROM {table}") for table in OF_A_JOB}


async def test_logs_files_and_jobs_go_one_after_the_other_each_at_its_time(world: World, store: S3Store) -> None:
    left = {}
    async with world.pool.acquire() as conn:
        for days in (2, 4, 8, 31):
            left[days] = await finished(conn, world, store, age=days * DAY)
        await rounds(world, store)
        logs_of = {row["job_id"] for row in await conn.fetch("SELECT DISTINCT job_id FROM log_chunks")}
        files_of = {row["job_id"] for row in await conn.fetch("SELECT job_id FROM artifacts WHERE state = 'complete'")}
        there = {row["id"] for row in await conn.fetch("SELECT id FROM jobs")}
        assert logs_of == {left[2]}
        assert files_of == {left[2], left[4]}
        assert there == {left[2], left[4], left[8]}
        assert len(await keys(store)) == 2 and await agree(conn, store)


async def test_a_job_goes_with_all_that_it_has(world: World, store: S3Store) -> None:
    async with world.pool.acquire() as conn:
        job = await finished(conn, world, store, age=31 * DAY, files=3)
        await conn.execute(
            "INSERT INTO delivery_attempts (delivery_id, attempt, duration_ms) SELECT id, 1, 1 FROM deliveries"
        )
        await conn.execute(
            "INSERT INTO chains (job_id, position, project_id, next_id, function) VALUES ($1, 0, $2, $3, 'f')",
            job, world.project, uuid4(),
        )  # fmt: skip
        await expiring.note_uses(conn, [(ArtifactId(uuid4()), job)])
        await rounds(world, store)
        assert await rows_of(conn) == dict.fromkeys(OF_A_JOB, 0)
        assert await keys(store) == set()


async def test_a_manifest_says_for_how_long(world: World, store: S3Store, pool: Pool) -> None:
    async with pool.acquire() as conn:
        short = await make_version_kept(conn, world.project, {"jobs": "2d", "artifacts": "1h", "logs": "10m"})
        long = await make_version_kept(conn, world.project, {"jobs": "365d", "artifacts": "60d", "logs": "60d"})
        for version in (short, long):
            other = World(pool, world.project, world.account, version, world.node)
            await finished(conn, other, store, age=31 * DAY)
        young = await finished(conn, World(pool, world.project, world.account, short, world.node), store, age=DAY)
        await rounds(world, store)
        versions = [row["version_id"] for row in await conn.fetch("SELECT version_id FROM jobs ORDER BY id")]
        assert versions == [long.id, short.id]
        assert await conn.fetchval("SELECT count(*) FROM log_chunks WHERE job_id = $1", young) == 0
        assert len(await keys(store)) == 1 and await agree(conn, store)


async def make_version_kept(conn: Connection, project: ProjectId, rule: Mapping[str, str]) -> Any:
    version = await make_version(conn, project, name=f"fn-{uuid4().hex[:6]}", job=OUTPUTS)
    await conn.execute(
        "UPDATE function_versions SET manifest = jsonb_set(manifest::jsonb, '{spec,retention}', $2::jsonb)::json"
        " WHERE id = $1",
        version.id, json.dumps(rule),
    )  # fmt: skip
    return version


async def test_what_is_not_finished_is_never_touched(world: World, store: S3Store) -> None:
    async with world.pool.acquire() as conn:
        queued, delayed, running = [
            await make_job(conn, world.version), await make_job(conn, world.version, delay=DAY),
            await make_job(conn, world.version),
        ]  # fmt: skip
        claimed = await claim_one(conn, world.node, world.account)
        await conn.execute("UPDATE jobs SET created_at = now() - interval '99 days'")
        await rounds(world, store)
        assert claimed.job_id in (queued, running)
        assert {row["id"] for row in await conn.fetch("SELECT id FROM jobs")} == {queued, delayed, running}


async def test_a_file_whose_time_is_over_is_listed_without_a_link_and_gone_for_everybody(
    world: World, store: S3Store
) -> None:
    async with world.pool.acquire() as conn:
        reader = await make_version(conn, world.project, name="reader", job=READER)
        job = await finished(conn, world, store, age=8 * DAY)
        (file,) = (await artifacts.outputs_of(conn, world.project, [job]))[job]
        assert file.kept
        await rounds(world, store)
        (record,) = await read_jobs(conn, world.project, [job])
        (output,) = job_object(record, NoLinks())["outputs"]
        assert (output["artifact"], output["url"], output["url_expires_at"]) == (
            ids.encode(ids.ARTIFACT, file.id), None, None,
        )  # fmt: skip
        for asked in (artifacts.get(conn, world.project, file.id), artifacts.by_link(conn, file.link_token)):
            with pytest.raises(Gone) as caught:
                await asked
            assert caught.value.code == "artifact_gone"
        new = new_job(reader, params={"file": output["uri"]})
        refused = await inputs.refused_inputs(conn, [new], LOOPBACK)
        assert refused[new.id].code == "artifact_not_found"


async def test_files_that_an_unfinished_job_reads_are_kept_until_it_has_ended(world: World, store: S3Store) -> None:
    async with world.pool.acquire() as conn:
        reader = await make_version(conn, world.project, name="reader", job=READER)
        maker = await finished(conn, world, store, age=31 * DAY)
        (made,) = (await artifacts.outputs_of(conn, world.project, [maker]))[maker]
        upload = await uploaded(conn, world, store, age=8 * DAY)
        readers = []
        for file in (made.id, upload):
            new = new_job(reader, params={"file": f"artifact:{ids.encode(ids.ARTIFACT, file)}"})
            assert await inputs.refused_inputs(conn, [new], LOOPBACK) == {}
            await jobs.submit(conn, [new])
            readers.append(new.id)
        await rounds(world, store)
        assert len(await keys(store)) == 2
        async with conn.transaction():
            await cancelling.cancel(conn, world.project, readers)
        await rounds(world, store)
        assert await keys(store) == set()
        assert await conn.fetchval("SELECT count(*) FROM jobs WHERE id = $1", maker) == 0


async def test_a_job_that_was_checked_and_never_came_keeps_its_files_for_an_hour_only(
    world: World, store: S3Store
) -> None:
    async with world.pool.acquire() as conn:
        upload = await uploaded(conn, world, store, age=8 * DAY)
        await expiring.note_uses(conn, [(upload, JobId(uuid4()))])
        await rounds(world, store)
        assert len(await keys(store)) == 1
        await conn.execute("UPDATE artifact_uses SET at = now() - interval '2 hours'")
        await rounds(world, store)
        assert await keys(store) == set()


async def test_uploads_go_unless_a_function_that_may_run_names_them(world: World, store: S3Store) -> None:
    async with world.pool.acquire() as conn:
        upload, young, named = [await uploaded(conn, world, store, age=days * DAY) for days in (8, 6, 8)]
        uri = f"artifact:{ids.encode(ids.ARTIFACT, named)}"
        constant = {"files": {"inputs": [{"path": "/in/model", "url": uri}]}}
        await make_version(conn, world.project, name="constant", job=constant)
        await make_version(conn, world.project, name="constant")
        await rounds(world, store)
        states = {row["id"]: row["state"] for row in await conn.fetch("SELECT id, state FROM artifacts")}
        assert states == {upload: "expired", young: "complete", named: "complete"}
        await conn.execute("UPDATE functions SET deleted_at = now()")
        await rounds(world, store)
        assert await agree(conn, store) and len(await keys(store)) == 1
        assert await expiring.forget_uploads(conn, age=KEEPING.jobs, limit=10) == 0
        assert await expiring.forget_uploads(conn, age=7 * DAY, limit=10) == 2


async def test_uploads_are_walked_through_page_by_page_past_those_that_are_needed(world: World, store: S3Store) -> None:
    async with world.pool.acquire() as conn:
        made = sorted([await uploaded(conn, world, store, age=8 * DAY) for _ in range(5)])
        await expiring.note_uses(conn, [(each, JobId(uuid4())) for each in made[:3]])
        after, gone = None, []
        for _ in range(3):
            marked, after = await expiring.expire_uploads(conn, after, age=7 * DAY, limit=2)
            gone.append(marked)
        assert (gone, after) == ([0, 1, 1], None)


class Killed(BaseException):
    pass


class Dying:
    """A store whose process dies at the deletion: before it, halfway or after it."""

    def __init__(self, store: S3Store, moment: str) -> None:
        self.store, self.moment = store, moment

    async def delete(self, wanted: Sequence[str]) -> None:
        part = {"before": 0, "halfway": 1, "after": len(wanted)}[self.moment]
        await self.store.delete(wanted[:part])
        raise Killed


@pytest.mark.parametrize("moment", ["before", "halfway", "after"])
async def test_a_crash_around_the_deletion_of_objects_is_made_good_by_the_next_round(
    world: World, store: S3Store, moment: str
) -> None:
    dying: Any = Dying(store, moment)
    async with world.pool.acquire() as conn:
        old, young = [await finished(conn, world, store, age=days * DAY, files=3) for days in (31, 1)]
        await note(conn)
        await retention.expire_once(world.pool, limit=100)
        with pytest.raises(Killed):
            await expiring.remove_once(world.pool, dying, limit=100)
        # Nobody is given what may be gone, and the rows stay until it is.
        assert {each.kept for each in (await artifacts.outputs_of(conn, world.project, [old]))[old]} == {False}
        assert await conn.fetchval("SELECT count(*) FROM artifacts WHERE state = 'expiring'") == 3
        await rounds(world, store)
        assert await agree(conn, store)
        assert [row["id"] for row in await conn.fetch("SELECT id FROM jobs")] == [young]


@pytest.mark.parametrize("step", ["_delete_logs", "_delete_jobs"])
async def test_a_crash_in_the_middle_of_a_round_changes_nothing(
    world: World, store: S3Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    done = getattr(retention, step)

    async def killed_after(*given: Any) -> None:
        await done(*given)
        raise Killed

    async with world.pool.acquire() as conn:
        await finished(conn, world, store, age=31 * DAY)
        await note(conn)
        before = await rows_of(conn)
        with monkeypatch.context() as patched:
            patched.setattr(retention, step, killed_after)
            with pytest.raises(Killed):
                await retention.expire_once(world.pool, limit=100)
        assert await rows_of(conn) == before and await agree(conn, store)
        await rounds(world, store)
        assert sum((await rows_of(conn)).values()) == 0 and await keys(store) == set()


async def test_jobs_stay_while_the_store_is_away(world: World, store: S3Store) -> None:
    class Away:
        async def delete(self, wanted: Sequence[str]) -> None:
            raise Unavailable("the object store does not answer")

    away: Any = Away()
    async with world.pool.acquire() as conn:
        await finished(conn, world, store, age=31 * DAY)
        await note(conn)
        for _ in range(2):
            await retention.expire_once(world.pool, limit=100)
            with pytest.raises(Unavailable):
                await expiring.remove_once(world.pool, away, limit=100)
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 1
        assert await conn.fetchval("SELECT due_at > now() FROM expiries")
        await rounds(world, store)
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 0


async def test_expiries_are_made_once_in_the_order_of_the_ends_whoever_makes_them(
    world: World, store: S3Store, pool: Pool
) -> None:
    async with pool.acquire() as conn, pool.acquire() as other:
        for days in (3, 9, 5):
            await finished(conn, world, store, age=days * DAY)
        transaction = conn.transaction()
        await transaction.start()
        assert await retention.note_once(conn, KEEPING, limit=2, settled=NOW) == 2
        assert await note(other) == 0
        await transaction.rollback()
        assert [await retention.note_once(other, KEEPING, limit=2, settled=NOW) for _ in range(3)] == [2, 1, 0]
        await finished(conn, world, store)
        assert await retention.note_once(other, KEEPING, limit=2) == 0
        assert await note(other) == 1
        assert await conn.fetchval("SELECT count(*) FROM expiries") == 4


async def test_a_log_or_an_output_larger_than_a_batch_goes_in_several(
    world: World, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_ROWS", 2)
    async with world.pool.acquire() as conn:
        job = await finished(conn, world, store, age=8 * DAY, files=3)
        await conn.execute(
            "INSERT INTO log_chunks (job_id, attempt, position, data) SELECT $1, 1, 6 + n, 'x' FROM generate_series(1, 3) n",
            job,
        )
        await note(conn)
        first = await retention.expire_once(world.pool, limit=10)
        assert first == Expired(looked=1, logs=2, artifacts=2, jobs=0)
        await conn.execute("UPDATE expiries SET due_at = now()")
        await retention.expire_once(world.pool, limit=10)
        await conn.execute("UPDATE expiries SET due_at = now()")
        await retention.expire_once(world.pool, limit=10)
        assert await conn.fetchval("SELECT count(*) FROM log_chunks") == 0
        assert await conn.fetchval("SELECT count(*) FROM artifacts WHERE state = 'complete'") == 0
        assert await conn.fetchval("SELECT due_at = jobs_at FROM expiries")


async def test_objects_without_a_row_go_and_rows_without_an_object_say_so(
    world: World, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiring, "PAGE", 2)
    async with world.pool.acquire() as conn:
        job = await finished(conn, world, store, files=3)
        files = (await artifacts.outputs_of(conn, world.project, [job]))[job]
        assert await bucket_owner.claim(conn, store)
        await store.delete([files[1].object_key])
        orphan = artifacts.object_key(world.project, job, 2, ArtifactId(uuid4()))
        for key in (orphan, artifacts.uploaded_key(world.project, ArtifactId(uuid4())), "somebody/elses"):
            await store.put(key, b"abc", "text/plain")

        async def compare(age: timedelta) -> tuple[int, int]:
            after, orphans, missing = None, 0, 0
            while True:
                page = await expiring.compare_once(world.pool, store, after, age=age)
                after, orphans, missing = page.after, orphans + page.orphans, missing + page.missing
                if after is None:
                    return orphans, missing

        # An upload link outlived its file's retention.
        late = await uploaded(conn, world, store)
        await conn.execute("UPDATE artifacts SET state = 'expired' WHERE id = $1", late)
        # What is young may be on its way.
        assert await compare(timedelta(hours=1)) == (0, 0)
        assert await compare(timedelta(seconds=-2)) == (3, 1)
        assert await keys(store) == {files[0].object_key, files[2].object_key, "somebody/elses"}
        with pytest.raises(NotFound):
            await artifacts.get(conn, world.project, files[1].id)
        await store.put(files[1].object_key, b"abc", "text/plain")
        assert await compare(timedelta(seconds=-2)) == (0, 0)
        assert (await artifacts.get(conn, world.project, files[1].id)).kept


async def test_another_databases_bucket_is_left_alone(world: World, store: S3Store) -> None:
    orphan = artifacts.uploaded_key(world.project, ArtifactId(uuid4()))
    await store.put(orphan, b"abc", "text/plain")
    await store.put(bucket_owner.MARK, str(uuid4()).encode(), "text/plain")
    for age in (timedelta(hours=1), timedelta(seconds=-2)):
        compared = await expiring.compare_once(world.pool, store, None, age=age)
        assert (compared.orphans, compared.foreign) == (0, True)
    assert await keys(store) == {orphan}


async def test_a_bucket_without_a_mark_is_not_taken_while_another_databases_files_are_in_it(
    world: World, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_owner, "PAGE", 2)
    others = [artifacts.uploaded_key(world.project, ArtifactId(uuid4())) for _ in range(2)]
    for key in ("0/a", "0/b", "0/c", *others):
        await store.put(key, b"abc", "text/plain")
    async with world.pool.acquire() as conn:
        assert await bucket_owner.owner_of(conn, store) is Owner.ANOTHER
        compared = await expiring.compare_once(world.pool, store, None, age=timedelta(seconds=-2))
        assert (compared.orphans, compared.foreign, await store.head(bucket_owner.MARK)) == (0, True, None)
        await store.delete(others)
        assert await bucket_owner.owner_of(conn, store) is Owner.NOBODY
        assert not (await expiring.compare_once(world.pool, store, None, age=timedelta(hours=1))).foreign
        assert await bucket_owner.owner_of(conn, store) is Owner.THIS


async def test_a_bucket_of_a_release_that_made_no_mark_is_taken_by_the_database_that_knows_its_files(
    world: World, store: S3Store
) -> None:
    async with world.pool.acquire() as conn:
        await finished(conn, world, store, files=9)
        await store.put(artifacts.uploaded_key(world.project, ArtifactId(uuid4())), b"abc", "text/plain")
        compared = await expiring.compare_once(world.pool, store, None, age=timedelta(seconds=-2))
        assert (compared.orphans, compared.foreign) == (1, False)
        assert len(await keys(store)) == 9 and await agree(conn, store)


async def make_batch(conn: Connection, world: World, *made: JobId) -> BatchId:
    """A batch of jobs that are there."""
    batch, function = BatchId(ids.new_uuid7()), world.version.function_id
    assert function is not None
    await batches.add(conn, NewBatch(batch, world.project, function, world.version.id, len(made), None, None))
    await conn.execute("UPDATE jobs SET batch_id = $1 WHERE id = ANY ($2)", batch, list(made))
    return batch


async def test_jobs_of_a_batch_stay_until_all_of_it_has_ended_so_that_its_counts_are_right(
    world: World, store: S3Store
) -> None:
    async with world.pool.acquire() as conn:
        early = await finished(conn, world, store, age=31 * DAY)
        late = await make_job(conn, world.version)
        batch = await make_batch(conn, world, early, late)
        await rounds(world, store)
        assert (await rows_of(conn))["jobs"] == 2
        assert await conn.fetchval("SELECT count(*) FROM log_chunks") == 0 and await keys(store) == set()
        await retention.expire_once(world.pool, limit=100)
        assert await conn.fetchval("SELECT due_at > now() FROM expiries WHERE job_id = $1", early), "not again and again"
        async with conn.transaction():
            await cancelling.cancel(conn, world.project, [late])
        assert await batches.complete_once(conn, batches.FIRST, limit=9) == (1, None)
        assert (await batches.read(conn, world.project, batch)).counts == {"succeeded": 1, "cancelled": 1}
        await conn.execute("UPDATE outcomes SET finished_at = now() - interval '31 days'")
        await rounds(world, store)
        assert await rows_of(conn) == dict.fromkeys(OF_A_JOB, 0)
        assert await conn.fetchval("SELECT count(*) FROM batches") == 0


async def test_schedulers_that_delete_the_last_jobs_of_a_batch_at_once_delete_the_batch(
    world: World, store: S3Store
) -> None:
    async with world.pool.acquire() as conn, world.pool.acquire() as other:
        pair = [await finished(conn, world, store, files=0) for _ in range(2)]
        await make_batch(conn, world, *pair)
        assert (await batches.complete_once(conn, batches.FIRST, limit=9))[0] == 1

        async def delete_second() -> None:
            async with other.transaction():
                await retention._delete_jobs(other, pair[1:])

        async with conn.transaction():
            await retention._delete_jobs(conn, pair[:1])
            second = asyncio.ensure_future(delete_second())
            await asyncio.wait([second], timeout=0.3)
        await second
        assert [await conn.fetchval(f"SELECT count(*) FROM {table}") for table in ("jobs", "batches")] == [0, 0]

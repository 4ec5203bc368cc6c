from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from functions import registry, versions
from functions.db import Connection, Pool
from functions.errors import NotFound
from functions.ids import FunctionId, ProjectId, VersionId, new_uuid7
from tests.functions.manifests import changed, manifest, parsed

MAKE_PROJECT = """
WITH account AS (INSERT INTO accounts (slug) VALUES ($1) RETURNING id)
INSERT INTO projects (account_id, slug, callback_secret) SELECT id, $1, '' FROM account RETURNING id
"""


async def make_project(conn: Connection) -> ProjectId:
    return ProjectId(await conn.fetchval(MAKE_PROJECT, f"p{uuid4().hex}"))


@pytest.fixture
async def project(conn: Connection) -> ProjectId:
    return await make_project(conn)


async def numbers(conn: Connection, project: ProjectId, name: str = "thumbnail") -> list[int]:
    found = await versions.list_versions(conn, project, name, limit=1000, before=None)
    return [version.number for version in found]


async def test_the_first_apply_makes_the_function_and_its_first_version(conn: Connection, project: ProjectId) -> None:
    applied = await registry.apply(conn, project, manifest())
    assert (applied.created, applied.changed) == (True, True)
    function = applied.function
    assert (function.name, function.version.number, function.version.function_name) == ("thumbnail", 1, "thumbnail")
    assert (function.version.project_id, function.version.function_id) == (project, function.id)
    assert function.version.manifest == manifest()
    assert function.version.image_digest is None
    assert function.created_at.tzinfo is UTC or function.created_at.utcoffset() == datetime.now(UTC).utcoffset()
    assert await registry.get(conn, project, "thumbnail") == function


async def test_an_unchanged_spec_makes_no_version(conn: Connection, project: ProjectId) -> None:
    first = await registry.apply(conn, project, manifest())
    again = await registry.apply(conn, project, manifest(timeout="600s", resources={"cpu": "1000m"}))
    assert (again.created, again.changed) == (False, False)
    assert again.function == first.function
    assert await numbers(conn, project) == [1]


async def test_a_changed_spec_makes_a_version_and_so_does_an_earlier_one(conn: Connection, project: ProjectId) -> None:
    await registry.apply(conn, project, manifest())
    second = await registry.apply(conn, project, manifest(image="ffmpeg:8"))
    third = await registry.apply(conn, project, manifest())
    assert [(one.function.version.number, one.created, one.changed) for one in (second, third)] == [
        (2, False, True),
        (3, False, True),
    ]
    assert await numbers(conn, project) == [3, 2, 1]


async def test_other_metadata_changes_the_function_and_makes_no_version(conn: Connection, project: ProjectId) -> None:
    await registry.apply(conn, project, manifest())
    document = changed("metadata.description", "First frame")
    document["metadata"]["labels"] = {"team": "media"}
    applied = await registry.apply(conn, project, parsed(document))
    assert (applied.created, applied.changed, applied.function.version.number) == (False, True, 1)
    metadata = applied.function.version.manifest.metadata
    assert (metadata.description, metadata.labels) == ("First frame", {"team": "media"})
    assert not (await registry.apply(conn, project, parsed(document))).changed
    [listed] = await registry.list_functions(conn, project, limit=10, before=None)
    assert listed.version.manifest.metadata == metadata


async def test_a_rollback_makes_an_earlier_version_current_and_the_next_change_gets_a_new_number(
    conn: Connection, project: ProjectId
) -> None:
    for tag in ("1", "2", "3"):
        await registry.apply(conn, project, manifest(image=f"ffmpeg:{tag}"))
    back = await registry.rollback(conn, project, "thumbnail", 1)
    assert (back.version.number, back.version.manifest.spec.job.image) == (1, "ffmpeg:1")
    assert (await registry.current(conn, project, "thumbnail")).number == 1
    assert not (await registry.apply(conn, project, manifest(image="ffmpeg:1"))).changed
    assert (await registry.apply(conn, project, manifest(image="ffmpeg:3"))).function.version.number == 4


async def test_a_version_is_found_by_name_and_number(conn: Connection, project: ProjectId) -> None:
    await registry.apply(conn, project, manifest(image="ffmpeg:1"))
    await registry.apply(conn, project, manifest(image="ffmpeg:2"))
    assert (await registry.current(conn, project, "thumbnail")).manifest.spec.job.image == "ffmpeg:2"
    assert (await registry.current(conn, project, "thumbnail", number=1)).manifest.spec.job.image == "ffmpeg:1"


@pytest.mark.parametrize("number", [0, -1, 3, 2**31, 2**70])
async def test_a_version_that_does_not_exist_is_not_found(conn: Connection, project: ProjectId, number: int) -> None:
    await registry.apply(conn, project, manifest())
    for call in (
        registry.current(conn, project, "thumbnail", number=number),
        registry.rollback(conn, project, "thumbnail", number),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.code == "version_not_found"


@pytest.mark.parametrize(
    "name", ["other", "", "Thumbnail", "thumbnail\0", "x" * 10_000, "\ud800", "thumbnail/../x", "é"]
)
async def test_a_function_that_does_not_exist_is_not_found(conn: Connection, project: ProjectId, name: str) -> None:
    await registry.apply(conn, project, manifest())
    for call in (
        registry.current(conn, project, name),
        registry.current(conn, project, name, number=1),
        registry.get(conn, project, name),
        registry.delete(conn, project, name),
        registry.rollback(conn, project, name, 1),
        versions.list_versions(conn, project, name, limit=10, before=None),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.code == "function_not_found"


async def test_another_project_has_its_own_functions(conn: Connection, project: ProjectId) -> None:
    other = await make_project(conn)
    mine = await registry.apply(conn, project, manifest())
    theirs = await registry.apply(conn, other, manifest(image="ffmpeg:8"))
    assert theirs.created
    assert (await registry.get(conn, project, "thumbnail")).id == mine.function.id
    assert [one.id for one in await registry.list_functions(conn, other, limit=10, before=None)] == [theirs.function.id]
    await registry.delete(conn, other, "thumbnail")
    assert (await registry.current(conn, project, "thumbnail")).manifest.spec.job.image == "ffmpeg:7"


async def test_a_deleted_function_frees_its_name_and_keeps_its_versions(conn: Connection, project: ProjectId) -> None:
    first = (await registry.apply(conn, project, manifest())).function
    assert await registry.delete(conn, project, "thumbnail") == first.id
    with pytest.raises(NotFound):
        await registry.current(conn, project, "thumbnail")
    assert await registry.list_functions(conn, project, limit=10, before=None) == []
    again = await registry.apply(conn, project, manifest())
    assert (again.created, again.function.version.number) == (True, 1)
    assert again.function.id != first.id
    kept = await versions.by_ids(conn, [first.version.id])
    assert (kept[first.version.id].function_id, kept[first.version.id].function_name) == (first.id, "thumbnail")


async def test_functions_are_listed_page_by_page_newest_first(conn: Connection, project: ProjectId) -> None:
    for name in "abcde":
        await registry.apply(conn, project, manifest(name))
    seen: list[str] = []
    before: FunctionId | None = None
    while page := await registry.list_functions(conn, project, limit=2, before=before):
        seen += [function.name for function in page]
        before = page[-1].id
    assert seen == ["e", "d", "c", "b", "a"]


async def test_versions_are_listed_page_by_page_newest_first(conn: Connection, project: ProjectId) -> None:
    for n in range(5):
        await registry.apply(conn, project, manifest(image=f"ffmpeg:{n}"))
    pages = [
        [version.number for version in await versions.list_versions(conn, project, "thumbnail", limit=2, before=before)]
        for before in (None, 4, 2, 1)
    ]
    assert pages == [[5, 4], [3, 2], [1], []]


async def test_the_first_digest_stays(conn: Connection, project: ProjectId) -> None:
    version = (await registry.apply(conn, project, manifest())).function.version.id
    first, second = ("ffmpeg@sha256:" + digit * 64 for digit in "ab")
    assert (await versions.by_ids(conn, [version]))[version].image_digest is None
    await versions.pin_digest(conn, version, first)
    await versions.pin_digest(conn, version, second)
    assert (await versions.by_ids(conn, [version]))[version].image_digest == first
    assert (await registry.current(conn, project, "thumbnail")).image_digest == first
    assert (await registry.get(conn, project, "thumbnail")).version.image_digest == first


async def test_versions_that_do_not_exist_are_left_out(conn: Connection, project: ProjectId) -> None:
    version = (await registry.apply(conn, project, manifest())).function.version.id
    assert await versions.by_ids(conn, []) == {}
    assert list(await versions.by_ids(conn, [VersionId(new_uuid7()), version, version])) == [version]


async def test_a_manifest_is_parsed_once(conn: Connection, project: ProjectId) -> None:
    version = (await registry.apply(conn, project, manifest())).function.version.id
    first = (await versions.by_ids(conn, [version]))[version]
    again = await registry.current(conn, project, "thumbnail")
    assert again.manifest is first.manifest
    assert again.params_schema is first.params_schema


@pytest.mark.parametrize(("most", "most_bytes"), [(3, 10_000), (100, 30)])
async def test_of_parsed_manifests_those_used_longest_ago_are_forgotten(
    conn: Connection, project: ProjectId, most: int, most_bytes: int
) -> None:
    cache = versions.ParsedVersions(most, most_bytes)
    found = [(await registry.apply(conn, project, manifest(image=f"ffmpeg:{n}"))).function.version for n in range(4)]
    for version in found[:3]:
        cache.add(version, 10)
    assert cache.get(found[0].id) is found[0]
    cache.add(found[3], 10)
    assert [cache.get(version.id) is not None for version in found] == [True, False, True, True]


async def test_a_manifest_that_is_larger_than_the_cache_is_not_kept(conn: Connection, project: ProjectId) -> None:
    cache = versions.ParsedVersions(10, 30)
    version = (await registry.apply(conn, project, manifest())).function.version
    cache.add(version, 31)
    assert cache.get(version.id) is None
    cache.add(version, 30)
    assert cache.get(version.id) is version


async def test_functions_applied_at_once_under_one_name_are_one_function(pool: Pool) -> None:
    async with pool.acquire() as conn:
        project = await make_project(conn)
    barrier = asyncio.Barrier(8)

    async def apply(tag: int) -> Any:
        async with pool.acquire() as conn:
            await barrier.wait()
            return await registry.apply(conn, project, manifest(image=f"ffmpeg:{tag}"))

    applied = await asyncio.gather(*(apply(n) for n in range(8)))
    assert sum(one.created for one in applied) == 1
    assert sorted(one.function.version.number for one in applied) == list(range(1, 9))
    assert len({one.function.id for one in applied}) == 1
    async with pool.acquire() as conn:
        assert await numbers(conn, project) == list(range(8, 0, -1))
        assert (await registry.current(conn, project, "thumbnail")).number == 8


async def test_the_same_manifest_applied_at_once_is_one_version(pool: Pool) -> None:
    async with pool.acquire() as conn:
        project = await make_project(conn)

    async def apply() -> Any:
        async with pool.acquire() as conn:
            return await registry.apply(conn, project, manifest())

    applied = await asyncio.gather(*(apply() for _ in range(8)))
    assert sorted((one.created, one.changed) for one in applied) == [(False, False)] * 7 + [(True, True)]
    async with pool.acquire() as conn:
        assert await numbers(conn, project) == [1]


WAITS_FOR_A_LOCK = """
SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database())
"""


async def test_an_apply_that_waited_for_the_same_change_makes_no_version(pool: Pool) -> None:
    async with pool.acquire() as first, pool.acquire() as second, pool.acquire() as watcher:
        project = await make_project(first)
        await registry.apply(first, project, manifest())
        async with first.transaction():
            assert (await registry.apply(first, project, manifest(image="ffmpeg:8"))).changed
            waiting = asyncio.create_task(registry.apply(second, project, manifest(image="ffmpeg:8")))
            async with asyncio.timeout(10):
                while not await watcher.fetchval(WAITS_FOR_A_LOCK):
                    await asyncio.sleep(0)
        assert not (await waiting).changed
        assert await numbers(first, project) == [2, 1]


async def test_a_name_that_is_taken_and_freed_all_the_time_is_applied_in_the_end(pool: Pool) -> None:
    async with pool.acquire() as conn:
        project = await make_project(conn)

    async def apply(tag: int) -> None:
        async with pool.acquire() as conn:
            await registry.apply(conn, project, manifest(image=f"ffmpeg:{tag}"))

    async def delete() -> None:
        async with pool.acquire() as conn:
            with contextlib.suppress(NotFound):
                await registry.delete(conn, project, "thumbnail")

    await asyncio.gather(*(call for n in range(20) for call in (apply(n), delete())))
    await apply(0)
    async with pool.acquire() as conn:
        assert (await registry.current(conn, project, "thumbnail")).manifest.spec.job.image == "ffmpeg:0"
        rows = await conn.fetch("SELECT id FROM functions WHERE deleted_at IS NULL")
        assert len(rows) == 1

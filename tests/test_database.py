from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import asyncpg

from gateway.database import is_current, load_migrations, migrate
from tests.postgres import Postgres


async def test_migrations_run_once_however_many_processes_start_together(postgres: Postgres) -> None:
    await postgres.execute("CREATE DATABASE racing")
    connections = [await asyncpg.connect(postgres.url("racing")) for _ in range(8)]
    ran = await asyncio.gather(*(migrate(conn) for conn in connections))
    assert sorted(map(len, ran)) == [0] * 7 + [len(load_migrations())]
    assert await is_current(connections[0])
    for conn in connections:
        await conn.close()
    await postgres.execute("DROP DATABASE racing")


async def test_an_empty_database_is_not_current(postgres: Postgres) -> None:
    conn = await asyncpg.connect(postgres.url("postgres"))
    assert not await is_current(conn)
    await conn.close()


async def test_callbacks_of_functions_of_an_earlier_release_are_there_after_the_migration(postgres: Postgres) -> None:
    await postgres.execute("CREATE DATABASE earlier")
    conn = await asyncpg.connect(postgres.url("earlier"))
    at = next(each.number for each in load_migrations() if each.name == "doors") - 1
    for migration in load_migrations()[:at]:
        await conn.execute(migration.sql)
    manifest = {"spec": {"callbacks": [{"url": "https://a.example/", "events": ["job.failed"]}, {"function": "b"}]}}
    await conn.execute("INSERT INTO accounts (slug) VALUES ('a')")
    await conn.execute("INSERT INTO projects (account_id, slug, callback_secret) VALUES (1, 'p', 'x')")
    for name, current in (("kept", 2), ("gone", 1)):
        function = uuid4()
        await conn.execute(
            """INSERT INTO functions (id, project_id, name, current_number, deleted_at)
            VALUES ($1, 1, $2, $3, CASE WHEN $2 = 'gone' THEN now() END)""",
            function, name, current,
        )  # fmt: skip
        for number in range(1, current + 1):
            await conn.execute(
                """INSERT INTO function_versions (id, project_id, function_id, number, manifest, manifest_hash)
                VALUES ($1, 1, $2, $3, $4, '')""",
                uuid4(), function, number, json.dumps(manifest if number == current else {"spec": {"callbacks": []}}),
            )  # fmt: skip
    await conn.execute(load_migrations()[at].sql)
    rows = await conn.fetch(
        "SELECT functions.name, url, events FROM callback_endpoints e JOIN functions ON functions.id = e.function_id"
    )
    assert [tuple(row) for row in rows] == [("kept", "https://a.example/", ["job.failed"])]
    # What the release before this one writes still fits.
    await conn.execute(
        """INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint)
        VALUES ($1, 1, $1, 'job.failed', 'https://a.example/', 'https://a.example:443') ON CONFLICT DO NOTHING""",
        uuid4(),
    )
    await conn.close()
    await postgres.execute("DROP DATABASE earlier")

"""Lists of a project with 10,000 functions, one of which has 10,000 versions; batches of 10,000 jobs, and of few bytes
that become many.

In the gateway's own process, without a network: what is measured is what the gateway and the database do."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Awaitable, Callable, Mapping

import httpx

from functions.ids import new_uuid7
from gateway.services import Services, open_services
from tests.bench.rounds import ROUNDS, Measured, percentile
from tests.gateway.conftest import client_of, make_settings
from tests.gateway.making import make_function
from tests.postgres import Postgres
from tests.s3 import S3Server

MANY = 10_000
SMALL, LARGE = 30, 950
"""Bytes of each job's params."""
WIDE = 3_000
"""Bytes of a default that each job of a tiny batch gets: 30 MB of 30 kB."""
SPILLED = 150_000
SIDE_BY_SIDE = 6

FUNCTIONS = """
WITH made AS (
    INSERT INTO functions (id, project_id, name, current_number, labels)
    SELECT gen_random_uuid(), f.project_id, 'f' || n, 1, CASE n % 100 WHEN 0 THEN '{"team": "rare"}' ELSE '{}' END::json
      FROM functions f CROSS JOIN generate_series(1, $1::int) n WHERE f.name = 'thumbnail'
    RETURNING id, project_id
)
INSERT INTO function_versions (id, project_id, function_id, number, manifest, manifest_hash)
SELECT gen_random_uuid(), made.project_id, made.id, 1, v.manifest, v.manifest_hash
  FROM made CROSS JOIN (SELECT manifest, manifest_hash FROM function_versions LIMIT 1) v
"""

VERSIONS = """
INSERT INTO function_versions (id, project_id, function_id, number, manifest, manifest_hash)
SELECT gen_random_uuid(), project_id, function_id, n, manifest, manifest_hash
  FROM function_versions CROSS JOIN generate_series(2, $1::int) n
 WHERE function_id = (SELECT id FROM functions WHERE name = 'thumbnail')
"""


async def measure(postgres: Postgres, s3: S3Server) -> list[Measured]:
    name = f"lists_{new_uuid7().hex}"
    await postgres.execute(f"CREATE DATABASE {name}")
    settings = make_settings(postgres.url(name), s3, migrate_at_start=True)
    async with open_services(settings) as opened, client_of(opened) as api:
        await make_function(api)
        return [await lists(opened, api), await batches(api), await defaults(api)]


async def lists(opened: Services, api: httpx.AsyncClient) -> Measured:
    """Pages of the usual 50, the median of ten; each page is another one, so that no manifest was read before."""
    async with opened.pool.acquire() as conn:
        await conn.execute(FUNCTIONS, MANY)
        await conn.execute(VERSIONS, MANY)
        await conn.execute("ANALYZE functions, function_versions")
    parties = {
        f"{MANY} functions": "/v1/functions?limit=50",
        "those with a label that 1 in 100 has": "/v1/functions?limit=50&label=team=rare",
        "those with a label that none has": "/v1/functions?limit=50&label=team=none",
        f"{MANY} versions": "/v1/functions/thumbnail/versions?limit=50",
    }
    measured = Measured("a page of 50, median of ten", "ms")
    cursors: dict[str, str | None] = dict.fromkeys(parties)
    for _ in range(ROUNDS):
        times: dict[str, list[float]] = {party: [] for party in parties}
        for _ in range(10):
            for party, path in parties.items():
                cursor = cursors[party]
                began_s = time.perf_counter()
                answer = await api.get(path + (f"&cursor={cursor}" if cursor else ""))
                times[party].append((time.perf_counter() - began_s) * 1e3)
                assert answer.status_code == 200, answer.text
                cursors[party] = answer.json()["next_cursor"]
        measured.rounds.append({party: percentile(each, 0.5) for party, each in times.items()})
    return measured


async def batches(api: httpx.AsyncClient) -> Measured:
    """Seconds from the request to the 202 after the commit; and what the process's memory grew by at its height."""
    made: list[str] = []

    async def batch(size: int) -> None:
        body = b"".join(
            json.dumps({"video": "x" * size, "width": 16 + number % 4000}).encode() + b"\n" for number in range(MANY)
        )
        answer = await api.post(
            "/v1/functions/thumbnail/batch", content=body, headers={"Content-Type": "application/x-ndjson"}
        )
        assert answer.status_code == 202, answer.text
        made.append(answer.json()["id"])

    async def look() -> None:
        assert (await api.get(f"/v1/batches/{made[-1]}")).status_code == 200

    async def cancel() -> None:
        assert (await api.post(f"/v1/batches/{made[-1]}/cancel")).status_code == 200

    async def retry() -> None:
        answer = await api.post("/v1/jobs/retry", json={"batch": made[-1], "status": "cancelled"})
        assert answer.json()["retried"] == MANY, answer.text

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        f"batch of {MANY} small jobs": lambda: batch(SMALL),
        f"batch of {MANY} jobs, 9.8 MB": lambda: batch(LARGE),
        "its counts": look,
        "cancel it": cancel,
        "retry all of it": retry,
    }
    return await timed("batches of 10,000 jobs", steps)


async def defaults(api: httpx.AsyncClient) -> Measured:
    """Seconds, and the process's memory, for batches whose few bytes become many: by a default of their schema."""
    for name, size in (("wide", WIDE), ("spilled", SPILLED)):
        properties = {"wide": {"type": "string", "default": "x" * size}}
        params = {"type": "object", "properties": properties}
        await make_function(api, name, params=params, job={"image": "busybox:1", "command": ["true"]})

    async def batch(name: str, jobs: int, status: int = 202) -> None:
        answer = await api.post(
            f"/v1/functions/{name}/batch", content=b"{}\n" * jobs, headers={"Content-Type": "application/x-ndjson"}
        )
        assert answer.status_code == status, answer.text

    async def beside() -> None:
        await asyncio.gather(*(batch("wide", MANY) for _ in range(SIDE_BY_SIDE)))

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        f"{MANY} jobs, 30 MB": lambda: batch("wide", MANY),
        "200 jobs, 30 MB, each in the store": lambda: batch("spilled", 200),
        f"{MANY} jobs, 1.5 GB: refused": lambda: batch("spilled", MANY, 413),
        f"{SIDE_BY_SIDE} of the first at once": beside,
    }
    return await timed("batches of a few kB that defaults make large", steps)


async def timed(title: str, steps: Mapping[str, Callable[[], Awaitable[None]]]) -> Measured:
    """Seconds of each step, and what they add to the process's memory."""
    measured = Measured(title, "s")
    before_mib = peak_mib()
    for _ in range(ROUNDS):
        took = {}
        for step, run in steps.items():
            began_s = time.perf_counter()
            await run()
            took[step] = time.perf_counter() - began_s
        measured.rounds.append(took)
    measured.title += f", memory at most {peak_mib() - before_mib:.0f} MiB more"
    return measured


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

"""Jobs without a function: the path of all others, and one version for all runs of a spec."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from functions import versions
from gateway.api.models.invoking import DryRun
from gateway.api.models.jobs import JobView
from gateway.services import Services
from tests.gateway.making import claim_one, finish, key_client, make_node, project_client

SPEC: dict[str, Any] = {"job": {"image": "busybox:1", "command": ["echo", "{{ params.word }}"]}}


async def run(api: httpx.AsyncClient, word: str = "a", **more: Any) -> dict[str, Any]:
    answer = await api.post("/v1/jobs", json=SPEC | {"params": {"word": word}}, **more)
    assert answer.status_code == 202, answer.text
    JobView.model_validate_json(answer.content)
    made: dict[str, Any] = answer.json()
    return made


async def version_rows(services: Services) -> int:
    async with services.pool.acquire() as conn:
        return int(await conn.fetchval("SELECT count(*) FROM function_versions"))


async def test_it_runs_as_any_other_job_does(api: httpx.AsyncClient, services: Services) -> None:
    node = await make_node(services)
    waiting = asyncio.ensure_future(
        api.post("/v1/jobs", json=SPEC | {"params": {"word": "a"}, "retry": {"attempts": 2}}, headers={"Prefer": "wait=30"})
    )
    claimed = await claim_one(services, node)
    assert claimed.function_id is None
    await finish(services, node, claimed)
    answer = await waiting
    job = JobView.model_validate_json(answer.content)
    assert (answer.status_code, job.status, job.function, job.max_attempts) == (200, "succeeded", None, 2)
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    assert (await api.get("/v1/jobs")).json()["data"] == [answer.json()]
    assert [event["type"] for event in (await api.get(f"/v1/jobs/{job.id}/events")).json()["data"]][:2] == [
        "created", "queued",
    ]  # fmt: skip
    again = await api.post(f"/v1/jobs/{job.id}/retry", json={"params": {"word": "b"}})
    assert (again.json()["function"], again.json()["params"], again.json()["retried_from"]) == (None, {"word": "b"}, job.id)
    current = await api.post("/v1/jobs/retry", json={"status": "succeeded", "version": "current"})
    assert current.json()["skipped"] == 1
    assert (await api.get("/v1/functions")).json()["data"] == []


async def test_all_runs_of_a_spec_share_a_version(api: httpx.AsyncClient, services: Services) -> None:
    await asyncio.gather(*(run(api, f"w{number}") for number in range(20)))
    assert await version_rows(services) == 1
    # The same, said in another way.
    job = {"command": ["echo", "{{ params.word }}"], "image": "busybox:1", "timeout": "10m", "network": False}
    await api.post("/v1/jobs", json={"job": job, "params": {"word": "x"}})
    assert await version_rows(services) == 1
    await api.post("/v1/jobs", json=SPEC | {"params": {"word": "x"}, "retry": {"attempts": 2}})
    async with project_client(services) as other:
        await run(other)
    assert await version_rows(services) == 3


async def test_a_version_that_no_job_has_any_more_is_forgotten_after_a_day(
    api: httpx.AsyncClient, services: Services
) -> None:
    await run(api)
    await api.post("/v1/jobs", json={"job": {"image": "busybox:2"}})
    await api.put("/v1/functions/f", json={
        "apiVersion": "rgrid/v1", "kind": "Function", "metadata": {"name": "f"}, "spec": {"job": {"image": "busybox:3"}},
    })  # fmt: skip
    async with services.pool.acquire() as conn:
        await conn.execute("DELETE FROM jobs WHERE params ->> 'word' IS NULL")
        assert await versions.forget_one_offs(conn, limit=10) == 0
        await conn.execute("UPDATE function_versions SET used_at = now() - interval '25 hours'")
        assert await versions.forget_one_offs(conn, limit=10) == 1
    assert await version_rows(services) == 2
    # Used again, it counts as used again.
    await run(api, "again")
    async with services.pool.acquire() as conn:
        fresh = "SELECT count(*) FROM function_versions WHERE function_id IS NULL AND used_at > now() - interval '1 minute'"
        assert await conn.fetchval(fresh) == 1


async def test_a_key_makes_one_job_of_one_body(api: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    made = await asyncio.gather(*(run(api, headers=key) for _ in range(5)))
    assert len({job["id"] for job in made}) == 1
    other = await api.post("/v1/jobs", json=SPEC | {"params": {"word": "b"}}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_dry_run_makes_nothing(api: httpx.AsyncClient, services: Services) -> None:
    answer = await api.post("/v1/jobs?dry_run=1", json=SPEC | {"params": {"word": "a"}})
    assert (answer.status_code, DryRun.model_validate_json(answer.content).function) == (200, None)
    assert (await api.get("/v1/jobs")).json()["data"] == []
    assert await version_rows(services) == 0


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({}, "invalid", "/job"), ({"job": 1}, "invalid", "/job"), ({"job": {}}, "manifest_invalid", "/job/image"),
        ({"job": {"image": "A B"}}, "manifest_invalid", "/job/image"),
        ({"job": {"image": "a", "commands": []}}, "manifest_invalid", "/job/commands"),
        ({"job": {"image": "a"}, "retry": {"attempts": 0}}, "manifest_invalid", "/retry/attempts"),
        ({"job": {"image": "a"}, "retry": None}, "manifest_invalid", "/retry"),
        ({"job": {"image": "a"}, "callbacks": [{"url": "https://10.0.0.1/"}]}, "url_refused", "/callbacks/0/url"),
        ({"job": {"image": "a"}, "triggers": {}}, "invalid", "/triggers"),
        ({"job": {"image": "a"}, "spec": {}}, "invalid", "/spec"),
        ({"job": {"image": "a"}, "params": []}, "invalid", "/params"),
        ({"job": {"image": "a", "command": ["a", "{{ params.x }}"]}}, "template_invalid", "/job/command/1"),
        ({"job": {"image": "a", "resources": {"cpu": 64}}}, "too_large_for_any_node", "/job/resources/cpu"),
        ({"job": {"image": "a"}, "queue": {"concurrency": {"limit": 1}}}, "manifest_invalid", "/queue/concurrency"),
        ({"job": {"image": "a", "secrets": ["NEVER_SET_ANYWHERE"]}}, "secret_missing", "/job/secrets"),
        (
            {"job": {"image": "a", "files": {"inputs": [{"path": "/in/a", "url": "{{ params.u }}"}]}},
             "params": {"u": "https://127.0.0.1/"}}, "url_refused", "/params/u",
        ),
    ],
)  # fmt: skip
async def test_a_spec_that_breaks_a_rule(
    shared_api: httpx.AsyncClient, body: dict[str, Any], code: str, pointer: str
) -> None:
    answer = await shared_api.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert answer.json()["errors"][0]["pointer"].startswith(pointer), answer.text
    assert "/spec/" not in answer.json()["detail"]


async def test_it_names_an_image_and_needs_the_scope_for_that(services: Services) -> None:
    async with key_client(services, "invoke", "read") as invoker:
        assert (await invoker.post("/v1/jobs", json=SPEC)).status_code == 403

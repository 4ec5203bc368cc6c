"""Files and their links: who gets one, for how long, and what a link is worth without a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import structlog.testing

from functions import expiring, ids
from gateway.api.models.files import ArtifactView
from gateway.api.models.jobs import JobView
from gateway.auth import add_key
from gateway.services import Services
from tests.gateway import work
from tests.gateway.conftest import client_of
from tests.gateway.work import Node, joined

OUTPUT = {"files": {"outputs": [{"path": "/out/a b.html", "name": "page", "contentType": "text/html"}]}}
DATA = b"<script>alert(1)</script>"


@pytest.fixture
async def node(services: Services) -> AsyncIterator[Node]:
    async with joined(services) as opened:
        yield opened


async def uploaded(services: Services, node: Node) -> tuple[dict[str, object], str]:
    """A lease whose one file is in the store, and the file's id."""
    await work.submit(services, await work.define(services, job=OUTPUT))
    lease = await node.claim_one()
    return lease, await node.upload(lease, "page", "/out/a b.html", DATA)


async def link_token(services: Services, artifact: str) -> str:
    async with services.pool.acquire() as conn:
        token: str = await conn.fetchval(
            "SELECT link_token FROM artifacts WHERE id = $1", ids.decode(ids.ARTIFACT, artifact)
        )
    return token


async def test_a_file_is_shown_with_a_fresh_link_that_saves_it(
    services: Services, node: Node, api: httpx.AsyncClient
) -> None:
    lease, artifact = await uploaded(services, node)
    before = datetime.now(UTC)
    await node.finish(lease, artifacts=[artifact])
    answer = await api.get(f"/v1/artifacts/{artifact}")
    view = ArtifactView.model_validate(answer.json())
    assert (view.id, view.uri, view.name, view.size) == (artifact, f"artifact:{artifact}", "page", len(DATA))
    assert view.sha256 == work.file("", "", DATA)["sha256"]
    life = view.url_expires_at - before
    assert timedelta(seconds=services.settings.link_s - 5) < life < timedelta(seconds=services.settings.link_s + 30)
    assert before - timedelta(minutes=1) < view.created_at < datetime.now(UTC)
    async with httpx.AsyncClient(trust_env=False, verify=False) as browser:
        download = await browser.get(view.url)
    assert download.content == DATA
    assert download.headers["content-disposition"].startswith('attachment; filename="a b.html"')
    assert view.link == f"{services.settings.base_url}/r/{await link_token(services, artifact)}"


async def test_a_stable_link_leads_to_the_file_without_a_key(services: Services, node: Node) -> None:
    lease, artifact = await uploaded(services, node)
    path = f"/r/{await link_token(services, artifact)}"
    async with client_of(services, None) as anyone:
        assert (await anyone.get(path)).status_code == 404
        await node.finish(lease, artifacts=[artifact])
        answer, head = await anyone.get(path), await anyone.head(path)
        for each in (answer, head):
            assert (each.status_code, each.content) == (302, b"")
            assert each.headers["cache-control"] == "no-store"
    async with httpx.AsyncClient(trust_env=False, verify=False) as browser:
        assert (await browser.get(answer.headers["location"])).content == DATA


@pytest.mark.parametrize(("method", "extra"), [("GET", ""), ("POST", ""), ("GET", "/"), ("GET", "/more")])
async def test_a_links_token_does_not_stand_in_the_log(shared_api: httpx.AsyncClient, method: str, extra: str) -> None:
    with structlog.testing.capture_logs() as lines:
        await shared_api.request(method, f"/r/{'A' * 32}{extra}")
    assert [line["path"] for line in lines if line["event"] == "request"] == ["/r/{token}"]


async def test_files_of_an_attempt_that_did_not_win_are_invisible(
    services: Services, node: Node, api: httpx.AsyncClient
) -> None:
    """SECURITY N17."""
    lease, artifact = await uploaded(services, node)
    token = await link_token(services, artifact)
    await node.finish(lease, "failed")
    async with services.pool.acquire() as conn:
        # Even if it had been marked by mistake, its attempt is not the one that the outcome names.
        await conn.execute("UPDATE artifacts SET state = 'complete', attempt = 2")
    for path in (f"/v1/artifacts/{artifact}", f"/r/{token}"):
        answer = await api.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "artifact_not_found")


async def test_a_file_whose_time_is_over_is_gone_and_its_job_still_lists_it(
    services: Services, node: Node, api: httpx.AsyncClient
) -> None:
    lease, artifact = await uploaded(services, node)
    token = await link_token(services, artifact)
    await node.finish(lease, artifacts=[artifact])
    async with services.pool.acquire() as conn:
        await expiring.expire_outputs(conn, [work.uuid_of(str(lease["job_id"]))], limit=10)
    assert await expiring.remove_once(services.pool, services.store, limit=10) == 1
    for answer in (
        await api.get(f"/v1/artifacts/{artifact}"),
        await api.get(f"/r/{token}"),
        await api.post(f"/v1/artifacts/{artifact}/revoke-link"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (410, "artifact_gone")
    (output,) = JobView.model_validate((await api.get(f"/v1/jobs/{lease['job_id']}")).json()).outputs
    assert (output.artifact, output.url, output.url_expires_at) == (artifact, None, None)


async def test_files_of_another_project_do_not_exist(services: Services, node: Node, api: httpx.AsyncClient) -> None:
    lease, artifact = await uploaded(services, node)
    await node.finish(lease, artifacts=[artifact])
    async with services.pool.acquire() as conn:
        theirs = await conn.fetchval(
            """INSERT INTO projects (account_id, slug, callback_secret)
            SELECT account_id, 'theirs', callback_secret FROM projects LIMIT 1 RETURNING id"""
        )
        key = await add_key(conn, theirs, name="theirs", scopes=["admin"])
        invoker = await add_key(conn, await work.project(services), name="invoker", scopes=["invoke"])
    async with client_of(services, key.text) as stranger:
        answers = [await stranger.get(f"/v1/artifacts/{each}") for each in (artifact, "art_" + "0" * 32)]
    assert [(each.status_code, each.json()["code"]) for each in answers] == [(404, "artifact_not_found")] * 2
    async with client_of(services, invoker.text) as client:
        assert (await client.get(f"/v1/artifacts/{artifact}")).status_code == 403


@pytest.mark.parametrize(
    "path", ["/r/x", "/r/" + "A" * 32, "/r/..", "/r/%00", "/v1/artifacts/x", "/v1/artifacts/job_1"]
)
async def test_what_names_no_file_is_not_found(shared_api: httpx.AsyncClient, path: str) -> None:
    answer = await shared_api.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"

"""The node's side of the API: the life of a lease, over HTTP, on a real database and store."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from functions import ids
from gateway.services import Services
from nodes import registry
from nodes.agent.gateway_client import CredentialRevoked, GatewayClient, LeaseLost, Refused
from nodes.protocol import LOG_CAP_BYTES, LOG_CHUNK_BYTES, AttemptReport, CollectedFile, HeldLease, JoinRequest
from scheduler import cancelling, queue
from scheduler.wakeups import Topic
from tests.gateway import work
from tests.gateway.conftest import client_of, listening
from tests.gateway.work import Node, file, joined, soon, uuid_of

OUTPUT = {"files": {"outputs": [{"path": "/out/a.txt", "name": "a", "required": True}]}}
UNKNOWN = "job_" + "0" * 32
TOKEN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def node(services: Services) -> AsyncIterator[Node]:
    async with joined(services) as opened:
        yield opened


@pytest.fixture
async def other(services: Services) -> AsyncIterator[Node]:
    async with joined(services) as opened:
        yield opened


@pytest.fixture
async def some_node(shared_services: Services) -> AsyncIterator[Node]:
    """One that holds nothing and takes nothing."""
    async with joined(shared_services) as opened:
        yield opened


async def artifact_states(services: Services, job: str) -> list[str]:
    async with services.pool.acquire() as conn:
        rows = await conn.fetch("SELECT state FROM artifacts WHERE job_id = $1 ORDER BY id", uuid_of(job))
    return [row["state"] for row in rows]


# Joining


async def test_of_fifty_machines_with_one_join_token_exactly_one_joins(services: Services) -> None:
    token = await work.mint(services)
    async with client_of(services, None) as client:
        bodies = [work.join_body(token, secrets.token_hex(32)) for _ in range(50)]
        answers = await asyncio.gather(*(client.post("/node/v1/join", json=body) for body in bodies))
        won = [index for index, answer in enumerate(answers) if answer.status_code == 200]
        assert len(won) == 1
        refused = [answer.json() for index, answer in enumerate(answers) if index not in won]
        assert {(each["status"], each["code"], each["detail"]) for each in refused} == {
            (401, "join_token_invalid", refused[0]["detail"])
        }
        again = await client.post("/node/v1/join", json=bodies[won[0]])
    assert again.json() == answers[won[0]].json()


async def test_unknown_expired_and_used_join_tokens_are_refused_alike(services: Services, node: Node) -> None:
    late, used = await work.mint(services), await work.mint(services)
    async with services.pool.acquire() as conn:
        await conn.execute(
            "UPDATE nodes SET join_expires_at = now() - interval '1 s' WHERE state = 'joining' AND join_hash = $1",
            registry._sha256(late),
        )
    async with client_of(services, None) as client:
        assert (await client.post("/node/v1/join", json=work.join_body(used, "x" * 64))).status_code == 200
        answers = [
            await client.post("/node/v1/join", json=work.join_body(token, "y" * 64))
            for token in (late, used, "no-such-token-at-all")
        ]
        second = await client.post("/node/v1/join", json=work.join_body(await work.mint(services), node.credential))
    assert len({(each.status_code, each.json()["detail"]) for each in answers}) == 1
    assert answers[0].status_code == 401 and "WWW-Authenticate" in answers[0].headers
    assert (second.status_code, second.json()["code"]) == (409, "node_joined_before")


# Taking work


async def test_a_lease_has_all_that_the_node_needs(services: Services, node: Node) -> None:
    version = await work.define(
        services,
        job={
            "command": ["convert", "{{ params.text }}"],
            "env": {"WHO": "{{ job.id }}"},
            "resources": {"cpu": "500m", "memory": "64Mi", "disk": "32Mi"},
            "files": {
                "inputs": [{"path": "/in/a", "content": "is {{ params.n }}"}],
                "outputs": [{"path": "/out/*.txt", "name": "texts", "contentType": "text/plain"}],
            },
            "timeout": "30s",
            "grace": "2s",
            "user": 1000,
        },
        params={
            "type": "object",
            "properties": {"text": {"type": "string"}, "n": {"type": "integer", "default": 7}},
        },
    )
    job = await work.submit(services, version, {"text": "two words"})
    lease = await node.claim_one()
    assert lease.pop("token") and json.loads(lease.pop("params")) == {"text": "two words", "n": 7}
    assert lease == {
        "job_id": job,
        "attempt": 1,
        "slots": 1,
        "function": "echo",
        "version": 1,
        "image": {"reference": "busybox:1", "pinned": None, "archive": None, "login": None},
        "command": ["convert", "two words"],
        "env": {"WHO": job},
        "secrets": {},
        "resources": {"cpu": 0.5, "memory_bytes": 64 * 2**20, "disk_bytes": 32 * 2**20},
        "inputs": [{"path": "/in/a", "url": None, "content": "is 7", "trusted": False, "size": None, "sha256": None}],
        "outputs": [{"path": "/out/*.txt", "name": "texts", "content_type": "text/plain", "required": False}],
        "timeout_s": 30,
        "grace_s": 2,
        "network": False,
        "user": 1000,
    }
    assert await node.claim() == []


async def test_a_waiting_node_hears_of_a_new_job_at_once(services: Services, node: Node) -> None:
    version = await work.define(services)
    waiting = asyncio.ensure_future(node.claim(wait_s=20))
    await asyncio.sleep(0.1)
    await work.submit(services, version)
    began = time.monotonic()
    services.wakeups.hint(Topic.READY)
    assert len(await waiting) == 1
    assert time.monotonic() - began < 0.8 * services.settings.poll_s


async def test_a_waiting_node_finds_a_job_that_nobody_told_it_of(services: Services, node: Node) -> None:
    waiting = asyncio.ensure_future(node.claim(wait_s=20))
    await asyncio.sleep(0)
    await work.submit(services, await work.define(services))
    async with asyncio.timeout(5):
        assert len(await waiting) == 1


async def test_nodes_that_wait_are_answered_when_the_gateway_stops_or_drains_them(
    services: Services, node: Node, other: Node
) -> None:
    waiting = asyncio.ensure_future(node.post("leases", {"free_slots": 1, "wait_s": 30}))
    await asyncio.sleep(0.05)
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET state = 'draining' WHERE id = $1", ids.decode(ids.NODE, node.id))
    services.wakeups.hint(Topic.READY)
    async with asyncio.timeout(1):
        assert (await waiting).json() == {"leases": [], "draining": True}
    assert (await node.post("heartbeat", {"leases": []})).json()["draining"] is True
    waiting = asyncio.ensure_future(other.post("leases", {"free_slots": 1, "wait_s": 30}))
    await asyncio.sleep(0.05)
    services.stopping.set()
    async with asyncio.timeout(1):
        assert (await waiting).json() == {"leases": [], "draining": False}


async def test_a_draining_node_gets_nothing(services: Services, node: Node) -> None:
    await work.submit(services, await work.define(services))
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET state = 'draining' WHERE id = $1", ids.decode(ids.NODE, node.id))
    answer = await node.post("leases", {"free_slots": 2, "wait_s": 10})
    assert answer.json() == {"leases": [], "draining": True}


async def test_a_node_gets_no_more_than_its_own_slots(services: Services, node: Node) -> None:
    version = await work.define(services)
    for _ in range(4):
        await work.submit(services, version)
    assert await node.claim(free_slots=0) == []
    assert len(await node.claim(free_slots=1000)) == 2


async def test_what_a_node_claimed_and_did_not_stay_for_is_ready_again_at_once(services: Services, node: Node) -> None:
    """The client goes while the statement that leases the job to it is under way."""
    job = await work.submit(services, await work.define(services))
    async with listening(services) as server, services.pool.acquire() as blocker:
        transaction = blocker.transaction()
        await transaction.start()
        # The claim has its job, and waits for this lock when it moves the clock on.
        await blocker.execute("LOCK TABLE pool_clocks IN EXCLUSIVE MODE")
        gone = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps({"free_slots": 1, "wait_s": 30}).encode()
        head = f"POST /node/v1/leases HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {node.credential}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        gone[1].write(head.encode() + body)
        await gone[1].drain()

        async def blocked() -> bool:
            return bool(
                await blocker.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pool_clocks'::regclass"
                )
            )

        await soon(blocked)
        gone[1].close()
        await gone[1].wait_closed()
        await asyncio.sleep(0.05)
        await transaction.rollback()

        async def ready() -> bool:
            return (await work.status(services, job))[0] == "queued"

        await soon(ready)
    (lease,) = await node.claim()
    assert (lease["job_id"], lease["attempt"]) == (job, 2)


async def test_an_artifact_as_input_comes_as_a_trusted_link_that_downloads_it(
    services: Services, node: Node, api: httpx.AsyncClient
) -> None:
    maker = await work.define(services, "maker", job=OUTPUT)
    await work.submit(services, maker)
    lease = await node.claim_one()
    artifact = await node.upload(lease, "a", "/out/a.txt", b"made of bytes")
    assert (await node.finish(lease, artifacts=[artifact])).json() == {"status": "succeeded"}
    taker = await work.define(
        services,
        "taker",
        params={"type": "object", "properties": {"f": {"type": "string"}}},
        job={"files": {"inputs": [{"path": "/in/f", "url": "{{ params.f }}"}]}},
    )
    await work.submit(services, taker, {"f": f"artifact:{artifact}"})
    (given,) = (await node.claim_one())["inputs"]
    announced = file("a", "/out/a.txt", b"made of bytes")
    assert (given["trusted"], given["size"], given["sha256"]) == (True, 13, announced["sha256"])
    async with httpx.AsyncClient(trust_env=False, verify=False) as storage:
        assert (await storage.get(given["url"])).content == b"made of bytes"
    await work.submit(services, taker, {"f": "https://example.com/x"})
    (given,) = (await node.claim_one())["inputs"]
    assert (given["url"], given["trusted"]) == ("https://example.com/x", False)


async def test_a_job_whose_input_is_gone_ends_alone(services: Services, node: Node) -> None:
    taker = await work.define(
        services,
        params={"type": "object", "properties": {"f": {"type": "string"}}},
        job={"files": {"inputs": [{"path": "/in/f", "url": "{{ params.f }}"}]}},
        retry={"attempts": 3},
    )
    gone = await work.submit(services, taker, {"f": "artifact:art_" + "0" * 32})
    bad = await work.submit(services, taker, {"f": "artifact:art_nonsense"})
    fine = await work.submit(services, taker, {"f": "https://example.com/x"})
    leases = await node.claim(free_slots=2, wait_s=5)
    assert [lease["job_id"] for lease in leases] == [fine]
    for job in (gone, bad):
        status, error = await work.status(services, job)
        assert (status, error["code"], error["attempt"]) == ("failed", "input_unavailable", 1)


async def test_a_job_that_cannot_be_rendered_ends_with_internal_and_hurts_no_other(
    services: Services, node: Node
) -> None:
    version = await work.define(services, job={"command": ["echo", "{{ trigger.kind }}"]})
    jobs = [await work.submit(services, version) for _ in range(3)]
    async with services.pool.acquire() as conn:
        # As an older release may have written it.
        await conn.execute("UPDATE jobs SET trigger = '{}' WHERE id = $1", uuid_of(jobs[0]))
        await conn.execute("UPDATE jobs SET trigger = '[1]' WHERE id = $1", uuid_of(jobs[1]))
    leases = await node.claim(free_slots=2, wait_s=5)
    assert [lease["job_id"] for lease in leases] == [jobs[2]]
    for job in jobs[:2]:
        status, error = await work.status(services, job)
        assert (status, error["code"]) == ("failed", "internal")


async def test_the_digest_that_ran_is_what_every_later_attempt_runs(services: Services, node: Node) -> None:
    version = await work.define(services)
    await work.submit(services, version)
    await work.submit(services, version)
    first, digest = await node.claim_one(), "busybox@sha256:" + "a" * 64
    assert first["image"]["pinned"] is None
    assert (await node.finish(first, image_digest=digest)).status_code == 200
    second = await node.claim_one()
    assert (second["image"]["reference"], second["image"]["pinned"]) == ("busybox:1", digest)
    refused = await node.finish(second, image_digest="anything else")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/image_digest")


# Heartbeats


async def test_heartbeats_renew_and_say_what_became_of_each_lease(services: Services, node: Node, other: Node) -> None:
    version = await work.define(services)
    kept, cancelled, lost = [await work.submit(services, version) for _ in range(3)]
    mine = {lease["job_id"]: lease for lease in await node.claim(free_slots=2)}
    (theirs,) = await other.claim()
    leases = [mine[job] for job in (kept, cancelled)]
    async with services.pool.acquire() as conn, conn.transaction():
        await conn.execute("UPDATE leases SET expires_at = now()")
        await cancelling.cancel(conn, await work.project(services), [uuid_of(cancelled)])
    unknown = {"job_id": UNKNOWN, "token": TOKEN}
    stale = {**leases[0], "token": TOKEN}
    assert theirs["job_id"] == lost
    assert await node.verdicts(*leases, theirs, unknown, progress=0.5, timeline={"pulling": 3}) == [
        "keep", "cancel", "lost", "lost",
    ]  # fmt: skip
    assert await node.verdicts(stale) == ["lost"]
    async with services.pool.acquire() as conn:
        rows = await conn.fetch("SELECT job_id, expires_at > now() AS alive, progress, timeline FROM leases")
    found = {ids.encode(ids.JOB, row["job_id"]): row for row in rows}
    assert [found[job]["alive"] for job in (kept, cancelled, lost)] == [True, True, False]
    assert (found[kept]["progress"], json.loads(found[kept]["timeline"])) == (0.5, {"pulling": 3})
    answer = (await node.post("heartbeat", {"leases": []})).json()
    assert answer == {"leases": [], "draining": False, "heartbeat_s": 3, "lease_s": 20}
    twice = await node.post("heartbeat", {"leases": [{"job_id": kept, "token": TOKEN}] * 2})
    assert twice.status_code == 422


async def test_a_heartbeat_that_meets_the_expiry_leaves_one_owner(services: Services, node: Node, other: Node) -> None:
    """SECURITY N10: whoever wins, the lease has one holder afterwards."""
    version = await work.define(services)
    for _ in range(20):
        await work.submit(services, version)
        lease = await node.claim_one()
        _, taken_back = await asyncio.gather(node.verdicts(lease), work.expire(services, lease))
        assert await node.verdicts(lease) == ["lost" if taken_back else "keep"]
        again = await other.claim()
        assert [each["attempt"] for each in again] == ([2] if taken_back else [])
        reports = [await node.finish(lease)] + [await other.finish(each) for each in again]
        assert [each.status_code for each in reports] == ([409, 200] if taken_back else [200])


# Reports


async def test_success_makes_the_files_count_and_a_repeat_gets_the_same_answer(services: Services, node: Node) -> None:
    job = await work.submit(services, await work.define(services, job=OUTPUT))
    lease = await node.claim_one()
    artifact = await node.upload(lease, "a", "/out/a.txt", b"hello")
    report = {"exit_code": 0, "result": {"n": [1, 2.5, None, "ü"]}, "artifacts": [artifact]}
    report["timeline"] = {"pulling": 1, "started": 2, "exited": 30}
    report["rejected"] = [{"path": "/out/link", "reason": "symlink"}]
    assert (await node.finish(lease, **report)).json() == {"status": "succeeded"}
    assert (await node.finish(lease, **report)).json() == {"status": "succeeded"}
    assert await artifact_states(services, job) == ["complete"]
    async with services.pool.acquire() as conn:
        row = await conn.fetchrow("SELECT * FROM outcomes WHERE job_id = $1", uuid_of(job))
    assert row is not None
    assert (row["status"], row["exit_code"], json.loads(row["result"])) == ("succeeded", 0, report["result"])
    assert json.loads(row["timeline"]) == report["timeline"]
    assert json.loads(row["rejected"]) == report["rejected"]


async def test_ten_equal_reports_at_once_make_one_outcome(services: Services, node: Node) -> None:
    job = await work.submit(services, await work.define(services, job=OUTPUT))
    lease = await node.claim_one()
    artifact = await node.upload(lease, "a", "/out/a.txt", b"hello")
    answers = await asyncio.gather(*(node.finish(lease, artifacts=[artifact]) for _ in range(10)))
    assert [answer.text for answer in answers] == ['{"status":"succeeded"}'] * 10
    assert (await work.status(services, job))[0] == "succeeded"


async def test_a_failed_attempt_is_tried_again_with_a_new_token(services: Services, node: Node) -> None:
    version = await work.define(services, retry={"attempts": 2, "backoff": {"initial": "0s"}})
    job = await work.submit(services, version)
    first = await node.claim_one()
    assert (await node.finish(first, "failed", exit_code=3)).json() == {"status": "scheduled"}
    async with services.pool.acquire() as conn:
        assert await queue.promote(conn, limit=10) == 1
    second = await node.claim_one()
    assert (second["job_id"], second["attempt"]) == (job, 2) and second["token"] != first["token"]
    assert (await node.finish(first, "failed", exit_code=3)).json() == {"status": "scheduled"}
    assert (await node.finish(second, "failed", exit_code=3)).json() == {"status": "failed"}
    status, error = await work.status(services, job)
    assert (status, error) == ("failed", {"code": "exit_nonzero", "message": "exit 1", "attempt": 2})


async def test_a_report_of_a_lost_lease_is_refused_and_changes_nothing(
    services: Services, node: Node, other: Node
) -> None:
    """SECURITY N09, N17: a node that was paused reports late, with files of its own."""
    job = await work.submit(services, await work.define(services, job=OUTPUT))
    late = await node.claim_one()
    stale = await node.upload(late, "a", "/out/a.txt", b"of the lost attempt")
    await work.expire(services, late)
    current = (await other.claim())[0]
    assert (current["job_id"], current["attempt"]) == (job, 2)
    answers = [
        await node.finish(late, artifacts=[stale]),
        await node.log(late, 0, b"late"),
        await node.post(f"jobs/{job}/outputs", {"token": late["token"], "files": []}),
        await node.post(f"jobs/{job}/release", {"token": late["token"]}),
        # With the new attempt's own number, too: the token is what counts.
        await node.log({**late, "attempt": 2}, 0, b"late"),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(409, "lease_lost")}
    good = await other.upload(current, "a", "/out/a.txt", b"of the attempt that won")
    assert (await other.finish(current, artifacts=[good])).json() == {"status": "succeeded"}
    assert (await node.finish(late, artifacts=[stale])).status_code == 409
    async with services.pool.acquire() as conn:
        rows = await conn.fetch("SELECT id, state FROM artifacts WHERE job_id = $1 ORDER BY id", uuid_of(job))
        chunks = await conn.fetchval("SELECT count(*) FROM log_chunks WHERE job_id = $1", uuid_of(job))
    assert [(ids.encode(ids.ARTIFACT, row["id"]), row["state"]) for row in rows] == [
        (stale, "pending"), (good, "complete"),
    ]  # fmt: skip
    assert chunks == 0


async def test_a_node_can_do_nothing_with_the_lease_of_another(services: Services, node: Node, other: Node) -> None:
    """SECURITY N05, even when it has got hold of the token."""
    job = await work.submit(services, await work.define(services, job=OUTPUT))
    lease = await node.claim_one()
    answers = [
        await other.finish(lease),
        await other.finish(lease, "failed"),
        await other.log(lease, 0, b"x"),
        await other.post(f"jobs/{job}/outputs", {"token": lease["token"], "files": []}),
        await other.post(f"jobs/{job}/release", {"token": lease["token"]}),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(409, "lease_lost")}
    assert await other.verdicts(lease) == ["lost"]
    assert await node.verdicts(lease) == ["keep"]


async def test_a_report_without_the_files_that_it_names_is_refused(services: Services, node: Node) -> None:
    """SECURITY N18."""
    job = await work.submit(services, await work.define(services, job=OUTPUT))
    lease = await node.claim_one()
    data = b"announced"
    body = {"token": lease["token"], "files": [file("a", "/out/a.txt", data)]}
    (target,) = (await node.post(f"jobs/{job}/outputs", body)).json()["uploads"]
    again = (await node.post(f"jobs/{job}/outputs", body)).json()["uploads"]
    assert [each["artifact_id"] for each in again] == [target["artifact_id"]]
    missing = await node.finish(lease, artifacts=[target["artifact_id"]])
    nothing = await node.finish(lease)
    assert {(each.status_code, each.json()["code"]) for each in (missing, nothing)} == {(422, "upload_mismatch")}
    async with httpx.AsyncClient(trust_env=False, verify=False) as storage:
        short = {**target["headers"], "content-length": "3"}
        assert (await storage.put(target["url"], content=b"abc", headers=short)).status_code == 403
    # A store that does not check what was signed is caught by looking.
    config = services.store._config  # type: ignore[attr-defined]
    async with services.pool.acquire() as conn:
        key = await conn.fetchval("SELECT object_key FROM artifacts WHERE job_id = $1", uuid_of(job))
    await services.store._client.put_object(Bucket=config.bucket, Key=key, Body=b"other")  # type: ignore[attr-defined]
    wrong = await node.finish(lease, artifacts=[target["artifact_id"]])
    assert (wrong.status_code, wrong.json()["code"]) == (422, "upload_mismatch")
    strange = await node.finish(lease, artifacts=["art_" + "0" * 32])
    assert (strange.status_code, strange.json()["code"]) == (422, "artifact_unknown")
    assert await work.status(services, job) == ("running", None)
    failed = await node.finish(lease, "failed", error={"code": "internal", "message": "not taken"})
    assert failed.json() == {"status": "failed"}
    assert await artifact_states(services, job) == ["pending"]


async def test_only_the_outputs_of_the_manifest_are_given_room(services: Services, node: Node) -> None:
    job = await work.submit(services, await work.define(services, job=OUTPUT))
    lease = await node.claim_one()
    files = [file("b", "/out/a.txt", b""), file("a", "/etc/passwd", b"")]
    answer = await node.post(f"jobs/{job}/outputs", {"token": lease["token"], "files": files})
    assert answer.status_code == 422
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/files/0/output", "/files/1/path"]
    assert await artifact_states(services, job) == []


async def test_a_thousand_files_with_long_paths_fit_in_one_request(services: Services, node: Node) -> None:
    outputs = {"files": {"outputs": [{"path": "/out/**", "name": "all"}]}}
    job = await work.submit(services, await work.define(services, job=outputs))
    lease = await node.claim_one()
    files = [file("all", f"/out/{'ü' * 900}/{index}", b"x" * index) for index in range(1000)]
    answer = await node.post(f"jobs/{job}/outputs", {"token": lease["token"], "files": files})
    assert answer.status_code == 200
    assert len({each["artifact_id"] for each in answer.json()["uploads"]}) == 1000


async def test_a_cancelled_job_ends_cancelled_whatever_its_node_reports(services: Services, node: Node) -> None:
    version = await work.define(services, retry={"attempts": 3})
    for report in ("failed", "cancelled"):
        job = await work.submit(services, version)
        lease = await node.claim_one()
        async with services.pool.acquire() as conn, conn.transaction():
            await cancelling.cancel(conn, await work.project(services), [uuid_of(job)])
        assert (await node.finish(lease, report)).json() == {"status": "cancelled"}
        assert await work.status(services, job) == ("cancelled", None)


# Handing back


async def test_a_released_job_is_ready_again_and_does_not_cost_the_user_an_attempt(
    services: Services, node: Node, other: Node
) -> None:
    version = await work.define(services)
    job = await work.submit(services, version)
    lease = await node.claim_one()
    waiting = asyncio.ensure_future(other.claim(wait_s=10))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    assert (await node.post(f"jobs/{job}/release", {"token": lease["token"], "reason": "drained"})).json() == {}
    (again,) = await waiting
    assert time.monotonic() - began < 0.8
    assert (again["job_id"], again["attempt"]) == (job, 2)
    assert (await other.finish(again)).json() == {"status": "succeeded"}
    assert (await node.post(f"jobs/{job}/release", {"token": lease["token"]})).status_code == 409


async def test_a_node_that_leaves_hands_everything_back_and_is_known_no_more(
    services: Services, node: Node, other: Node
) -> None:
    version = await work.define(services)
    kept, cancelled = await work.submit(services, version), await work.submit(services, version)
    assert len(await node.claim(free_slots=2)) == 2
    async with services.pool.acquire() as conn, conn.transaction():
        await cancelling.cancel(conn, await work.project(services), [uuid_of(cancelled)])
    assert (await node.post("leave")).json() == {}
    assert await work.status(services, kept) == ("queued", None)
    assert await work.status(services, cancelled) == ("cancelled", None)
    answers = [
        await node.post("leave"),
        await node.post("leases", {"free_slots": 1}),
        await node.post("heartbeat", {"leases": []}),
    ]
    assert {(each.status_code, each.json()["code"]) for each in answers} == {(401, "node_credential_invalid")}
    assert (await other.claim_one())["job_id"] == kept


# Logs


async def test_log_chunks_are_taken_in_order_once(services: Services, node: Node) -> None:
    job = await work.submit(services, await work.define(services))
    lease = await node.claim_one()

    async def ship(position: int, data: bytes) -> int:
        answer = await node.log(lease, position, data)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["next_position"])

    assert await ship(0, b"") == 0
    assert await ship(0, b"one\n") == 4
    assert await ship(0, b"one\n") == 4
    assert await ship(0, b"one\ntwo\n") == 4
    assert await ship(9, b"a gap") == 4
    assert await asyncio.gather(*(ship(4, b"two\n") for _ in range(5))) == [8] * 5
    assert await ship(0, b"") == 8
    async with services.pool.acquire() as conn:
        rows = await conn.fetch("SELECT position, data FROM log_chunks WHERE job_id = $1", uuid_of(job))
    assert sorted((row["position"], row["data"]) for row in rows) == [(0, b"one\n"), (4, b"two\n")]
    wrong = await node.log({**lease, "attempt": 2}, 0, b"x")
    assert (wrong.status_code, wrong.json()["code"]) == (409, "lease_lost")
    assert (await node.log(lease, 8, b"x" * (LOG_CHUNK_BYTES + 1))).status_code == 413


async def test_a_log_ends_at_its_cap_with_a_line_that_says_so(services: Services, node: Node) -> None:
    job = await work.submit(services, await work.define(services))
    lease = await node.claim_one()
    async with services.pool.acquire() as conn:
        await conn.execute(
            "INSERT INTO log_chunks (job_id, attempt, position, data) VALUES ($1, 1, 0, $2)",
            uuid_of(job), b"x" * (LOG_CAP_BYTES - 10),
        )  # fmt: skip
    marker = b"\n[rgrid: log cut at 10 MiB]\n"
    answer = await node.log(lease, LOG_CAP_BYTES - 10, b"y" * 100)
    end = LOG_CAP_BYTES + len(marker)
    assert answer.json() == {"next_position": end}
    assert (await node.log(lease, end, b"more")).json() == {"next_position": end}
    async with services.pool.acquire() as conn:
        last = await conn.fetchval("SELECT data FROM log_chunks WHERE job_id = $1 AND position > 0", uuid_of(job))
    assert last == b"y" * 10 + marker


# The agent's own client


async def test_the_agents_client_and_the_gateway_understand_each_other(services: Services) -> None:
    version = await work.define(services, job=OUTPUT)
    job, other = await work.submit(services, version), await work.submit(services, version)
    credential, data = secrets.token_hex(32), b"by the agent"
    async with listening(services) as server:
        client = GatewayClient(f"http://127.0.0.1:{server.port}", credential)
        try:
            hashed = registry._sha256(credential).hex()
            token = await work.mint(services)
            request = JoinRequest(token=token, credential_sha256=hashed, slots=2, version="1", facts={"arch": "x"})
            answer = await client.join(request)
            assert (answer.heartbeat_s, answer.lease_s) == (3, 20)
            with pytest.raises(Refused, match="join_token_invalid"):
                await client.join(request.model_copy(update={"credential_sha256": "0" * 64}))
            first, second = (await client.claim(2, 0)).leases
            assert {first.job_id, second.job_id} == {job, other}
            held = HeldLease(job_id=first.job_id, token=first.token, progress=0.5)
            assert (await client.heartbeat([held], 5)).leases[0].verdict == "keep"
            assert await client.ship_log(first.job_id, first.token, 1, 0, b"line\n") == 5
            assert await client.ship_log(first.job_id, first.token, 1, 0, b"") == 5
            collected = CollectedFile(**file("a", "/out/a.txt", data))
            (upload,) = await client.request_uploads(first.job_id, first.token, [collected])
            report = AttemptReport(token=first.token, status="succeeded", artifacts=[upload.artifact_id])
            with pytest.raises(Refused, match="upload_mismatch"):
                await client.finish(first.job_id, report)
            async with httpx.AsyncClient(trust_env=False, verify=False) as storage:
                await storage.put(upload.url, content=data, headers=upload.headers)
            assert (await client.finish(first.job_id, report)).status == "succeeded"
            await client.release(second.job_id, second.token, "drained")
            with pytest.raises(LeaseLost):
                await client.release(second.job_id, second.token, "drained")
            await client.leave()
            with pytest.raises(CredentialRevoked):
                await client.claim(1, 0)
        finally:
            await client.aclose()


# Bad input

LEASE = {"job_id": UNKNOWN, "token": TOKEN}
CALLS: dict[str, dict[str, Any]] = {
    "join": {"token": "t" * 32, "credential_sha256": "0" * 64, "slots": 1, "version": "1"},
    "leases": {"free_slots": 1, "wait_s": 0},
    "heartbeat": {"leases": [LEASE]},
    f"jobs/{UNKNOWN}/outputs": {"token": TOKEN, "files": [file("a", "/out/a", b"x")]},
    f"jobs/{UNKNOWN}/finish": {"token": TOKEN, "status": "succeeded"},
    f"jobs/{UNKNOWN}/release": {"token": TOKEN},
    "leave": {},
}
MUTATIONS: list[Any] = [
    None, True, -1, 2**63, 10**200, 1.5, "", "x", "x\0y", "\ud800", "x" * 5000, [], {}, [[[]]], {"a": None},
]  # fmt: skip
RAW = (b"", b"null", b"[]", b"{", b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000, b'"\\u0000"')


async def test_no_body_makes_the_nodes_side_fail(services: Services, node: Node) -> None:
    """SECURITY §7.2: every field of every call, replaced by what it cannot be."""
    for path, good in CALLS.items():
        bodies: list[Any] = [{**good, name: bad} for name in (*good, "unknown") for bad in MUTATIONS]
        for data in [json.dumps(body).encode() for body in bodies] + list(RAW):
            if path == "leave" and data == b"{}":
                continue
            headers = {"Content-Type": "application/json"}
            answer = await node.http.post(f"/node/v1/{path}", content=data, headers=headers)
            assert answer.status_code < 500, (path, data[:200], answer.text)
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"


async def test_no_report_contradicts_itself_or_overflows_a_column(services: Services, node: Node) -> None:
    job = await work.submit(services, await work.define(services))
    lease = await node.claim_one()
    error = {"code": "exit_nonzero", "message": "x"}
    bad: list[dict[str, Any]] = [
        {"status": "succeeded", "exit_code": 1},
        {"status": "succeeded", "error": error},
        {"status": "failed", "error": None},
        {"status": "failed", "exit_code": 2**31},
        {"status": "failed", "error": {"code": "node_lost", "message": "x"}},
        {"status": "failed", "result": {}},
        {"status": "cancelled", "error": error},
        {"status": "succeeded", "timeline": {"started": 2**52}},
        {"status": "succeeded", "timeline": {"never": 1}},
        {"status": "succeeded", "artifacts": ["art_x"]},
        {"status": "expired"},
        {"status": "succeeded", "result": "x" * 2**20},
    ]
    for report in bad:
        answer = await node.post(f"jobs/{job}/finish", {"token": lease["token"], **report})
        assert answer.status_code in (413, 422), report
    assert await work.status(services, job) == ("running", None)


@pytest.mark.parametrize("job", ["job_x", "x", "node_" + "0" * 32, "job_" + "F" * 32, UNKNOWN])
async def test_a_job_that_is_not_held_is_a_lost_lease_by_any_name(some_node: Node, job: str) -> None:
    lease = {"job_id": job, "token": TOKEN, "attempt": 1}
    answers = [
        await some_node.finish(lease),
        await some_node.log(lease, 0, b"x"),
        await some_node.post(f"jobs/{job}/outputs", {"token": TOKEN, "files": []}),
        await some_node.post(f"jobs/{job}/release", {"token": "-" * 40}),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(409, "lease_lost")}


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("attempt=1", {}, 422),
        ("attempt=0&position=0", {}, 422),
        ("attempt=1&position=-1", {}, 422),
        ("attempt=1&position=99999999999999999999", {}, 422),
        ("attempt=1&position=9007199254740991", {}, 409),
        ("attempt=2147483647&position=0", {}, 409),
        ("attempt=1&attempt=1&position=0", {}, 422),
        ("attempt=1&position=0&more=1", {}, 422),
        ("attempt=1&position=0", {"RGrid-Lease": "short"}, 400),
        ("attempt=1&position=0", {"Content-Type": "text/plain"}, 415),
        ("attempt=1&position=0", {"Content-Encoding": "gzip"}, 415),
    ],
)
async def test_bad_log_calls_are_refused(some_node: Node, query: str, headers: dict[str, str], status: int) -> None:
    given = {"RGrid-Lease": TOKEN, "Content-Type": "application/octet-stream"} | headers
    answer = await some_node.http.post(f"/node/v1/jobs/{UNKNOWN}/logs?{query}", content=b"x", headers=given)
    assert answer.status_code == status, answer.text


async def test_api_keys_are_no_node_credentials_nor_the_other_way_round(
    shared_api: httpx.AsyncClient, some_node: Node
) -> None:
    for path, body in CALLS.items():
        if path != "join":
            assert (await shared_api.post(f"/node/v1/{path}", json=body)).status_code == 401
    assert (await some_node.http.get(f"/v1/jobs/{UNKNOWN}/logs")).status_code == 401

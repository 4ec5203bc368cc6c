from __future__ import annotations

import asyncio
import itertools
import time
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nodes.agent import gateway_client
from nodes.agent.gateway_client import CredentialRevoked, GatewayClient, LeaseLost, Refused, Unreachable
from nodes.agent.identity import sha256_hex
from nodes.protocol import AttemptReport, HeldLease, JoinRequest
from tests.nodes.agent.gateway import TestGateway


def join_request(token: str, credential: str) -> JoinRequest:
    return JoinRequest(
        token=token, credential_sha256=sha256_hex(credential), slots=2, version="1", facts={"docker": "20"}
    )


async def test_joining_sends_the_hash_and_never_the_credential(gateway: TestGateway) -> None:
    token, credential = "t" * 43, "c" * 64
    gateway.join_tokens[token] = None
    seen: list[dict[str, str]] = []
    client = GatewayClient(gateway.url, credential)

    async def record(request: httpx.Request) -> None:
        seen.append(dict(request.headers))

    client._http.event_hooks["request"] = [record]

    answer = await client.join(join_request(token, credential))
    assert answer.node_id.startswith("node_")
    assert "authorization" not in seen[0]
    assert gateway.joins[0].credential_sha256 == sha256_hex(credential)
    assert (await client.heartbeat([], timeout_s=5)).leases == []
    await client.aclose()


async def test_a_join_whose_answer_got_lost_is_repeated_with_the_same_pair(gateway: TestGateway) -> None:
    gateway.join_tokens["t" * 43] = None
    gateway.after = lambda path: gateway.count("join") > 2
    client = GatewayClient(gateway.url, "c" * 64)
    first = await client.join(join_request("t" * 43, "c" * 64))
    assert len(gateway.joins) == 3
    assert (await client.join(join_request("t" * 43, "c" * 64))).node_id == first.node_id
    await client.aclose()


@pytest.mark.parametrize("token", ["u" * 43, "t" * 43])
async def test_an_unknown_or_used_token_is_refused_at_once(gateway: TestGateway, token: str) -> None:
    gateway.join_tokens["t" * 43] = sha256_hex("another")
    client = GatewayClient(gateway.url, "c" * 64)
    with pytest.raises(Refused) as caught:
        await client.join(join_request(token, "c" * 64))
    assert (caught.value.status, caught.value.code) == (401, "join_token_invalid")
    await client.aclose()


async def test_an_unknown_credential_is_told_apart_from_everything_else(gateway: TestGateway) -> None:
    client = GatewayClient(gateway.url, "x" * 64)
    with pytest.raises(CredentialRevoked):
        await client.claim(1, 0)
    await client.aclose()


async def test_a_long_poll_gets_a_job_when_it_comes(gateway: TestGateway, client: GatewayClient) -> None:
    poll = asyncio.create_task(client.claim(1, 10))
    while not gateway.count("leases"):
        await asyncio.sleep(0.01)
    began = time.monotonic()
    job = gateway.add("image")
    (lease,) = (await poll).leases
    assert (lease.job_id, lease.token, lease.attempt) == (job.lease.job_id, job.token, 1)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
async def test_a_gateway_that_cannot_answer_now_is_asked_again(
    gateway: TestGateway, client: GatewayClient, status: int
) -> None:
    gateway.before = lambda path: Response(status_code=status) if gateway.count("leases") < 3 else None
    assert (await client.claim(1, 0)).leases == []
    assert gateway.count("leases") == 3


async def test_an_answer_that_is_not_the_protocols_is_no_answer(
    gateway: TestGateway, client: GatewayClient
) -> None:
    answers = {1: PlainTextResponse("<html>welcome to the proxy</html>"), 2: JSONResponse({"leases": "none"})}
    gateway.before = lambda path: answers.get(gateway.count("leases"))
    assert (await client.claim(1, 0)).leases == []
    assert gateway.count("leases") == 3


async def test_retry_after_is_honoured_within_bounds(
    gateway: TestGateway, client: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_client, "RETRY_AFTER_MOST_S", 0.5)
    busy = Response(status_code=429, headers={"retry-after": "86400"})
    gateway.before = lambda path: busy if gateway.count("leases") < 2 else None
    began = time.monotonic()
    await client.claim(1, 0)
    assert 0.5 <= time.monotonic() - began < 3


async def test_a_gateway_that_restarts_is_waited_for(gateway: TestGateway, client: GatewayClient) -> None:
    await client.claim(1, 0)
    gateway.stop()
    claim = asyncio.create_task(client.claim(1, 0))
    await asyncio.sleep(0.5)
    assert not claim.done()
    await asyncio.to_thread(gateway.start)
    async with asyncio.timeout(10):
        assert (await claim).leases == []


async def test_nodes_do_not_all_come_back_at_once(
    gateway: TestGateway, client: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits a random part of a time that grows to five seconds."""
    pauses: list[float] = []
    parts = itertools.cycle([0.0, 0.5, 1.0])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            gateway.before = lambda path: None

    gateway.before = lambda path: Response(status_code=503)
    monkeypatch.setattr(gateway_client, "random", SimpleNamespace(random=lambda: next(parts)))
    monkeypatch.setattr(gateway_client, "asyncio", SimpleNamespace(sleep=sleep, timeout=asyncio.timeout))
    assert (await client.claim(1, 0)).leases == []
    assert pauses == pytest.approx([0, 0.1, 0.4, 0, 0.8, 3.2, 0, 2.5, 5])


async def test_a_heartbeat_is_tried_once(gateway: TestGateway, client: GatewayClient) -> None:
    gateway.before = lambda path: Response(status_code=503)
    with pytest.raises(Unreachable):
        await client.heartbeat([HeldLease(job_id="job_1", token="0" * 32)], timeout_s=5)
    assert gateway.count("heartbeat") == 1


async def test_a_call_ends_when_the_gateway_does_not_answer(
    gateway: TestGateway, client: GatewayClient
) -> None:
    def stuck(path: str) -> None:
        time.sleep(1)

    gateway.before = stuck  # type: ignore[assignment]
    began = time.monotonic()
    with pytest.raises(Unreachable):
        await client.heartbeat([], timeout_s=0.2)
    assert time.monotonic() - began < 1


async def test_a_stale_lease_is_known_by_its_code_on_every_call(
    gateway: TestGateway, client: GatewayClient
) -> None:
    job, stale = gateway.add("image"), str(uuid4())
    await client.claim(1, 0)
    report = AttemptReport(token=stale, status="cancelled")
    for call in (
        client.ship_log(job.lease.job_id, stale, 1, 0, b"x"),
        client.request_uploads(job.lease.job_id, stale, []),
        client.finish(job.lease.job_id, report),
        client.release(job.lease.job_id, stale, ""),
    ):
        with pytest.raises(LeaseLost):
            await call
    assert (job.state, job.log) == ("leased", b"")


async def test_another_refusal_is_not_repeated(gateway: TestGateway, client: GatewayClient) -> None:
    gateway.before = lambda path: JSONResponse({"code": "invalid", "detail": "no\nsuch thing"}, 422)
    with pytest.raises(Refused) as caught:
        await client.release("job_1", str(uuid4()), "")
    assert (caught.value.status, caught.value.code, caught.value.detail) == (422, "invalid", "no\nsuch thing")
    assert gateway.count("release") == 1


async def test_connections_are_used_again(gateway: TestGateway, client: GatewayClient) -> None:
    for _ in range(20):
        await client.heartbeat([], timeout_s=5)
    assert len(client._http._transport._pool.connections) == 1  # type: ignore[attr-defined]


async def test_a_token_never_shows_in_an_error(gateway: TestGateway) -> None:
    client = GatewayClient(gateway.url, "c" * 64)
    for call in (client.claim(1, 0), client.heartbeat([], timeout_s=1)):
        with pytest.raises(CredentialRevoked) as caught:
            await call
        assert "c" * 64 not in repr(caught.value)
    await client.aclose()

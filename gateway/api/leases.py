"""/node/v1, a node's life: it joins, takes leases, renews them, hands them back and leaves."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Literal
from uuid import UUID

import structlog
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from functions import ids, versions
from functions.db import Connection
from functions.errors import FieldError, Invalid, LeaseLost, RGridError, Unauthenticated, Unavailable
from functions.ids import JobId, NodeId
from functions.secrets import SecretMissing
from gateway.advancing import advance
from gateway.body import JSON
from gateway.offers import InputUnavailable, MoneyUsedUp, job_lease
from gateway.peers import source_of
from gateway.problems import Problem, kind_of
from gateway.routes import Handler, Route, Scope, gone, node_caller, read_body, services
from gateway.services import Services
from nodes import joining, registry
from nodes.protocol import (
    ClaimAnswer,
    ClaimRequest,
    Empty,
    HeartbeatAnswer,
    HeartbeatRequest,
    HeldLease,
    JobLease,
    JoinAnswer,
    JoinRequest,
    LeaseVerdict,
    ReleaseRequest,
)
from scheduler import claiming, finishing, leasing, live_events
from scheduler.claiming import Claimed
from scheduler.finishing import Report
from scheduler.gates import GateId
from scheduler.wakeups import Topic

log = structlog.get_logger(__name__)


async def join(request: Request) -> Response:
    """POST /node/v1/join: redeem a join token, once; again with the same credential gives the same answer."""
    body = await read_body(request, JoinRequest)
    opened = services(request)
    settings = opened.settings
    source = source_of(request, settings.trusted_proxies)
    async with opened.joining, opened.pool.acquire() as conn, conn.transaction():
        node = await joining.join(conn, body, source)
    if isinstance(node, RGridError):
        raise node
    log.info("node joined", node=ids.encode(ids.NODE, node), slots=body.slots, version=body.version, source=source)
    return wire(
        JoinAnswer(node_id=ids.encode(ids.NODE, node), heartbeat_s=settings.heartbeat_s, lease_s=settings.lease_s)
    )


async def claim(request: Request) -> Response:
    """POST /node/v1/leases: work for the slots that are free, as soon as there is any; none after `wait_s`."""
    body = await read_body(request, ClaimRequest)
    opened, node = services(request), node_caller(request).node_id
    deadline = time.monotonic() + body.wait_s
    left = asyncio.ensure_future(gone(request))
    stopping = asyncio.ensure_future(opened.stopping.wait())
    try:
        with opened.dispatcher.waiting(node, body.free_slots):
            while True:
                ticket = opened.wakeups.ticket(Topic.READY)
                answer = await _look(opened, node, body.free_slots, left)
                rest_s = deadline - time.monotonic()
                if answer.leases or answer.draining or rest_s <= 0 or opened.stopping.is_set():
                    return wire(answer)
                # Not all nodes in one instant.
                poll_s = opened.settings.poll_s * random.uniform(0.8, 1.2)  # noqa: S311
                hint = asyncio.ensure_future(ticket.wait(min(poll_s, rest_s)))
                try:
                    await asyncio.wait([hint, left, stopping], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    hint.cancel()
                if left.done():
                    raise ClientDisconnect
    finally:
        left.cancel()
        stopping.cancel()


async def _look(opened: Services, node: NodeId, free_slots: int, left: asyncio.Future[None]) -> ClaimAnswer:
    """What the node gets now; raises ``ClientDisconnect`` if it has ``left``.

    What it is not answered with is handed back at once: nobody would work on it until its lease runs out.
    """
    claimed: list[Claimed] = []
    try:
        async with opened.hot_pool.acquire() as conn:
            standing = await registry.standing(conn, node)
            if standing is None:
                raise Unauthenticated("this node is gone", code="node_credential_invalid")
            if standing.state != "ready":
                return ClaimAnswer(leases=[], draining=True)
            if not (free_slots := min(free_slots, standing.slots)):
                return ClaimAnswer(leases=[])
            pools = await registry.pools_of(conn, standing)
            for turn in await opened.dispatcher.turns(conn, node, standing, pools, free_slots):
                async with conn.transaction():
                    taken = await claiming.claim(
                        conn,
                        opened.clocks,
                        node,
                        pools=pools,
                        free_slots=free_slots - sum(each.slots for each in claimed),
                        node_slots=standing.slots,
                        lease=timedelta(seconds=opened.settings.lease_s),
                        lanes=turn.lanes,
                        most=turn.slots,
                    )
                    told = await _announced(conn, live_events.tell_started(conn, opened.links, taken))
                claimed += taken
                if told:
                    opened.wakeups.hint(Topic.DELIVERY)
            offers = [await _offer(opened, conn, node, each) for each in claimed]
        if left.done():
            raise ClientDisconnect
    except BaseException:
        if claimed:
            await asyncio.shield(_hand_back(opened, node, claimed))
        raise
    return ClaimAnswer(leases=[lease for lease in offers if lease is not None])


async def _offer(opened: Services, conn: Connection, node: NodeId, claimed: Claimed) -> JobLease | None:
    """The lease for its node. A job that cannot be made ready ends here: it would fail again and again."""
    try:
        version = (await versions.by_ids(conn, [claimed.version_id]))[claimed.version_id]
        return await job_lease(
            conn,
            opened.store,
            opened.sealer,
            claimed,
            version,
            link_s=opened.settings.upload_s,
            slot_memory=opened.sizing.slot_memory,
        )
    except Exception as error:
        if isinstance(kind_of(error), Unavailable):
            raise  # the database's trouble, not the job's
        if not isinstance(error, RGridError):
            log.exception("job not made ready for its node", job_id=ids.encode(ids.JOB, claimed.job_id))
        report = Report(
            claimed.token,
            "failed",
            code=error.code if isinstance(error, InputUnavailable | MoneyUsedUp | SecretMissing) else "internal",
            message=error.message if isinstance(error, RGridError) else "the job could not be made ready for a node",
            retryable=False,
        )
    freed: set[GateId] = set()
    async with conn.transaction():
        await finishing.finish(conn, node, claimed.job_id, report, opened.sizing, freed=freed)
    await advance(opened.hot_pool, opened.wakeups, freed)
    hint_outcome(opened)
    opened.wakeups.hint(Topic.READY)  # its slot is free again
    return None


async def _hand_back(opened: Services, node: NodeId, claimed: Sequence[Claimed]) -> None:
    held = [(each.job_id, each.token) for each in claimed]
    freed: set[GateId] = set()
    try:
        async with opened.hot_pool.acquire() as conn, conn.transaction():
            await finishing.release(conn, node, held, "the node was gone before it was answered", freed)
        await advance(opened.hot_pool, opened.wakeups, freed)
    except Exception as error:
        log.warning("claimed jobs not handed back", jobs=len(held), error=type(error).__name__)
    opened.wakeups.hint(Topic.READY)


async def heartbeat(request: Request) -> Response:
    """POST /node/v1/heartbeat: renew leases, and hear for each whether to go on."""
    body = await read_body(request, HeartbeatRequest)
    opened, node = services(request), node_caller(request)
    held = {each.job_id: lease for each in body.leases if (lease := _lease(each.job_id, each.token)) is not None}
    if len({each.job_id for each in body.leases}) < len(body.leases):
        raise Invalid("a job stands twice", errors=[FieldError("/leases", "each job once")])
    settings, heard = opened.settings, set[JobId]()
    async with opened.hot_pool.acquire() as conn:
        kept = await leasing.heartbeat(
            conn,
            node.node_id,
            [_renewal(each, *held[each.job_id]) for each in body.leases if each.job_id in held],
            lease=timedelta(seconds=settings.lease_s),
            heard=heard,
        )
        told = False
        if heard:
            async with conn.transaction():
                told = await _announced(conn, live_events.tell_progress(conn, opened.links, heard))
    if told:
        opened.wakeups.hint(Topic.DELIVERY)
    verdicts = [LeaseVerdict(job_id=each.job_id, verdict=_verdict(kept, held.get(each.job_id))) for each in body.leases]
    return wire(
        HeartbeatAnswer(
            leases=verdicts,
            draining=node.state != "ready",
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
        )
    )


async def _announced(conn: Connection, telling: Awaitable[bool]) -> bool:
    """Whether there is anything to be sent. What goes wrong with that must not keep jobs from their nodes."""
    try:
        async with conn.transaction():
            return await telling
    except Exception as error:
        if isinstance(kind_of(error), Unavailable):
            raise
        log.exception("events of jobs not written")
        return False


def _renewal(each: HeldLease, job: JobId, token: UUID) -> tuple[JobId, UUID, float | None, dict[str, int]]:
    return job, token, each.progress, {str(stage): offset for stage, offset in each.timeline.items()}


def _verdict(kept: Mapping[JobId, bool], lease: tuple[JobId, UUID] | None) -> Literal["keep", "cancel", "lost"]:
    if lease is None or lease[0] not in kept:
        return "lost"
    return "cancel" if kept[lease[0]] else "keep"


async def release(request: Request) -> Response:
    """POST /node/v1/jobs/{job}/release: the job is ready again at once, or cancelled if that was asked for."""
    body = await read_body(request, ReleaseRequest)
    opened, node = services(request), node_caller(request).node_id
    job, token = lease_of(request, body.token)
    freed: set[GateId] = set()
    async with opened.hot_pool.acquire() as conn, conn.transaction():
        if await leasing.find_held(conn, node, job, token) is None or not await finishing.release(
            conn, node, [(job, token)], body.reason, freed
        ):
            raise lease_lost()
    await advance(opened.hot_pool, opened.wakeups, freed)
    opened.wakeups.hint(Topic.READY)
    hint_outcome(opened)
    return wire(Empty())


async def leave(request: Request) -> Response:
    """POST /node/v1/leave: the node goes for good. What it still holds is ready again at once."""
    await read_body(request, Empty)
    opened, node = services(request), node_caller(request).node_id
    freed: set[GateId] = set()
    async with opened.hot_pool.acquire() as conn, conn.transaction():
        await finishing.release(conn, node, await leasing.held_by(conn, node), "the node left", freed)
        await registry.leave(conn, node)
    await advance(opened.hot_pool, opened.wakeups, freed)
    log.info("node left", node=ids.encode(ids.NODE, node))
    opened.wakeups.hint(Topic.READY)
    hint_outcome(opened)
    return wire(Empty())


def wire(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type=JSON)


def lease_of(request: Request, token: str) -> tuple[JobId, UUID]:
    """The job of the path and the token of its lease; raises ``LeaseLost`` for what can be neither."""
    lease = _lease(request.path_params["job"], token)
    if lease is None:
        raise lease_lost()
    return lease


def _lease(job: str, token: str) -> tuple[JobId, UUID] | None:
    found = ids.decode(ids.JOB, job)
    try:
        return None if found is None else (JobId(found), UUID(token))
    except ValueError:
        return None


def lease_lost() -> LeaseLost:
    """Alike for a job that does not exist, one of another node, and one that this node held before."""
    return LeaseLost("this lease is not held (any more): another attempt may be running")


def hint_outcome(opened: Services) -> None:
    """Some job may have an outcome now: wake those who wait for it, send its callbacks, follow its log."""
    for topic in (Topic.OUTCOME, Topic.DELIVERY):
        opened.wakeups.hint(topic)


def node_route(path: str, handler: Handler, summary: str, body: type[BaseModel], answer: type[BaseModel]) -> Route:
    return Route("POST", f"/node/v1/{path}", handler, summary, Scope.NODE, body=body, answers={200: answer}, tag="node")


ROUTES = (
    Route(
        "POST", "/node/v1/join", join, "Become a node", None, body=JoinRequest,
        answers={200: JoinAnswer, 401: Problem, 403: Problem}, tag="node",
    ),
    node_route("leases", claim, "Take work", ClaimRequest, ClaimAnswer),
    node_route("heartbeat", heartbeat, "Renew leases", HeartbeatRequest, HeartbeatAnswer),
    node_route("jobs/{job}/release", release, "Hand a job back", ReleaseRequest, Empty),
    node_route("leave", leave, "Stop being a node", Empty, Empty),
)  # fmt: skip

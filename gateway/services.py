"""What the gateway opens once and every request shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import structlog

from functions.artifacts import Store
from functions.db import Pool
from functions.egress import EgressPolicy
from functions.errors import Conflict, Invalid, LimitReached, Unavailable
from functions.s3 import S3Config, S3Store
from functions.sealing import Sealer
from gateway.advancing import Advancer
from gateway.auth import Keys
from gateway.bootstrap import ensure_bootstrap
from gateway.budgeting import Budgets
from gateway.cursors import Cursors
from gateway.database import is_current, migrate, open_pool
from gateway.dispatching import Dispatcher
from gateway.gathering import Gatherer
from gateway.hooking import Hooks
from gateway.instance import InstanceReader, instance_reader
from gateway.links import JobLinks
from gateway.request_metrics import RequestMetrics
from gateway.settings import Settings, rules_of
from gateway.waiting import OutcomeWaiters
from nodes.agent_files import AgentFiles
from scheduler import jobs
from scheduler.claiming import VirtualClocks
from scheduler.gates import GateId
from scheduler.jobs import Submitted
from scheduler.preparing import Sizing
from scheduler.queue import NewJob
from scheduler.wakeups import Wakeups

log = structlog.get_logger(__name__)

STATEMENT_S = 15
"""A request's statement is given up after this long: the database is a black hole or far behind."""
CLOSING_S = 2
JOINS = 4
"""So many are looked at side by side: a whole fleet that starts at once must not take the pool from everybody else."""
BATCHES, BATCH_BODIES = 2, 8
"""So many are read and written side by side, each with tens of megabytes; and so many are there or on their way, each
with up to ten."""

REFUSED_ALONE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
"""What one bad row does to the whole statement it stands in."""

Submitter = Gatherer[NewJob, Submitted | Conflict | Invalid | LimitReached]


@dataclass
class Services:
    """``hot_pool`` is for the queue's statements (see ``open_pool``). ``stopping`` is set when the process is
    to end: whatever waits for long must then answer at once. ``wakeups`` and ``waiters`` are running."""

    settings: Settings
    pool: Pool
    hot_pool: Pool
    store: Store
    sealer: Sealer
    keys: Keys
    wakeups: Wakeups
    waiters: OutcomeWaiters
    submitter: Submitter
    picky: Submitter
    advancer: Advancer
    links: JobLinks
    clocks: VirtualClocks
    sizing: Sizing
    egress: EgressPolicy
    callback_egress: EgressPolicy
    cursors: Cursors
    hooks: Hooks
    dispatcher: Dispatcher
    agent: AgentFiles
    budgets: Budgets
    instance: InstanceReader
    requests: RequestMetrics = field(default_factory=RequestMetrics)
    joining: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(JOINS))
    batching: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(BATCHES))
    receiving: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(BATCH_BODIES))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Connect to the database and the store, and see to it that both are fit to serve from.

    Raises ``Unavailable``, in one line, when they do not answer or the schema is old.
    """
    async with AsyncExitStack() as stack:
        sealer = Sealer(settings.secret_key.get_secret_value())
        url = settings.database_url.get_secret_value()
        pool = await open_pool(url, command_timeout_s=STATEMENT_S)
        stack.push_async_callback(_close, pool)
        await _prepare(pool, settings, sealer)
        hot_pool = await open_pool(url, hot_path=True, command_timeout_s=STATEMENT_S)
        stack.push_async_callback(_close, hot_pool)
        store = await stack.enter_async_context(S3Store(s3_config(settings)))
        await store.ensure_bucket()
        wakeups = Wakeups(url)
        waiters = OutcomeWaiters(pool, wakeups, poll_s=settings.poll_s)
        for running in (wakeups.run(), waiters.run()):
            stack.push_async_callback(_cancel, asyncio.create_task(running))
        advancer = Advancer(hot_pool, wakeups)
        stack.push_async_callback(advancer.settled, CLOSING_S)
        yield Services(
            settings=settings,
            pool=pool,
            hot_pool=hot_pool,
            store=store,
            sealer=sealer,
            keys=Keys(pool),
            wakeups=wakeups,
            waiters=waiters,
            submitter=_submitter(hot_pool, advancer),
            picky=_submitter(hot_pool, advancer, largest=1),
            advancer=advancer,
            links=JobLinks(store, settings.base_url, settings.link_s),
            clocks=VirtualClocks(),
            sizing=Sizing(settings.slot_memory, settings.max_slots),
            egress=EgressPolicy(allow=settings.callback_allow),
            callback_egress=settings.callback_policy,
            cursors=Cursors(settings.secret_key.get_secret_value().encode()),
            hooks=Hooks(hot_pool, sealer),
            agent=AgentFiles.load(settings.agent_folder),
            budgets=Budgets(pool),
            instance=await stack.enter_async_context(instance_reader(settings)),
            dispatcher=Dispatcher(rules_of(settings), slot_memory=settings.slot_memory),
        )


def _submitter(pool: Pool, advancer: Advancer, *, largest: int = 200) -> Submitter:
    async def submit(batch: list[NewJob]) -> list[Submitted | Conflict | Invalid | LimitReached]:
        reached: set[GateId] = set()
        async with pool.acquire() as conn:
            answers = await jobs.submit(conn, batch, reached)
        advancer.soon(reached)
        return answers

    return Gatherer(submit, key=_idempotency, alone=REFUSED_ALONE, largest=largest)


def _idempotency(job: NewJob) -> object | None:
    """Two jobs with one key cannot stand in one statement."""
    return None if job.idempotency_key is None else (job.project_id, job.key_scope, job.idempotency_key)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    if not isinstance(ended, asyncio.CancelledError):
        log.error("a background task had ended", exc_info=ended)


async def _prepare(pool: Pool, settings: Settings, sealer: Sealer) -> None:
    async with pool.acquire() as conn:
        if settings.migrate_at_start:
            await migrate(conn)
        elif not await is_current(conn):
            raise Unavailable("the database's schema is older than this release: run `rgrid migrate` first")
        await ensure_bootstrap(conn, settings, sealer)


def s3_config(settings: Settings) -> S3Config:
    return S3Config(
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint or settings.s3_endpoint,
        region=settings.s3_region,
        bucket=settings.s3_bucket,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key.get_secret_value(),
        upload_s=settings.upload_s,
    )


async def _close(pool: Pool) -> None:
    """Let statements end, but not for ever: the process is going."""
    try:
        async with asyncio.timeout(CLOSING_S):
            await pool.close()
    except TimeoutError:
        pool.terminate()

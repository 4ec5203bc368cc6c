"""The scheduler process: its rounds, what they need, and how they end.

Any number of schedulers may run side by side: each round is a batch that skips what another one has in hand.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial

import structlog

from functions import artifacts, versions
from functions.db import Pool
from functions.egress import EgressPolicy
from functions.errors import Unavailable
from functions.s3 import S3Store
from functions.sealing import Sealer
from gateway.advancing import advance
from gateway.autoscaling import autoscaling
from gateway.database import is_current, open_pool
from gateway.links import JobLinks
from gateway.queue_rounds import queue_rounds
from gateway.retention_rounds import retention_rounds
from gateway.schedule_rounds import schedule_rounds
from gateway.services import s3_config
from gateway.settings import Settings
from gateway.usage_rounds import usage_rounds
from nodes import registry, servers
from scheduler import batches, cancelling, idempotency, queue
from scheduler.attempts import Carrier, Direct
from scheduler.chaining import chain_once
from scheduler.gates import GateId
from scheduler.loop import Round, run_rounds
from scheduler.preparing import Sizing
from scheduler.reaper import Sight, reap_once
from scheduler.round_records import TELL_S, Records, Tally
from scheduler.sending import Sender
from scheduler.wakeups import Topic, Wakeups

log = structlog.get_logger(__name__)

STATEMENT_S = 30
"""Longer than any round's statement; a connection that says nothing for so long is given up."""
BATCH = 500
BATCHES = 50
"""Open batches looked at in one statement: for each it may go over some thousands of jobs."""
CHAINS = 100
"""Outcomes with jobs to follow that are read in one transaction, params and all."""
LATE_S = 5
"""Between looks for jobs that came in beside the delete of their function."""
SLOW_S = 60
"""Between rounds that only tidy up."""
ROUNDS_STOP_S, SENDER_STOP_S, TELL_STOP_S, POOL_STOP_S = 0.7, 0.4, 0.3, 0.2
"""How long what is under way may still take; ``rgrid up`` has 10 s for all of its processes."""


async def serve_scheduler(settings: Settings) -> None:
    """Run the rounds until SIGTERM or SIGINT; raises ``Unavailable``, in one line, when it cannot start."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for asked in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(asked, stopping.set)
    await schedule(settings, stopping)


async def schedule(settings: Settings, stopping: asyncio.Event) -> None:
    """Run the rounds until ``stopping`` is set."""
    sealer = Sealer(settings.secret_key.get_secret_value())
    url = settings.database_url.get_secret_value()
    wakeups, records = Wakeups(url), Records()
    async with (
        _pool(url, hot_path=False) as pool,
        _pool(url, hot_path=True) as hot_pool,
        S3Store(s3_config(settings)) as store,
        carrier_of(settings, pool) as (carrier, its_rounds),
    ):
        async with pool.acquire() as conn:
            if not await is_current(conn):
                raise Unavailable("the database's schema is older than this release: run `rgrid migrate` first")
        sender = Sender(
            pool,
            carrier,
            sealer,
            JobLinks(store, settings.base_url, settings.link_s),
            changed=lambda: wakeups.wake(Topic.DELIVERY),
            records=records,
        )
        hints = asyncio.create_task(wakeups.run())
        try:
            log.info("scheduler started")
            rounds = rounds_of(settings, wakeups, sender, records, pool=pool, hot_pool=hot_pool, store=store)
            rounds += schedule_rounds(settings, wakeups, hot_pool=hot_pool, store=store)
            rounds += retention_rounds(settings, hot_pool, store)
            rounds += its_rounds
            rounds += usage_rounds(hot_pool)
            async with autoscaling(settings, pool, sealer, wakeups, records) as buying:
                await run_rounds([*rounds, *buying], stopping, grace_s=ROUNDS_STOP_S, records=records)
            await sender.close(grace_s=SENDER_STOP_S)
            await _tell_last(records, pool)
        finally:
            hints.cancel()
            with suppress(asyncio.CancelledError):
                await hints
    log.info("scheduler ended")


async def _tell_last(records: Records, pool: Pool) -> None:
    async def tell() -> None:
        with suppress(Exception):
            await records.tell_once(pool)

    # If it hangs, the end of its pool ends it: a statement that is cancelled is waited for.
    telling = asyncio.create_task(tell())
    await asyncio.wait([telling], timeout=TELL_STOP_S)
    telling.cancel()


@asynccontextmanager
async def carrier_of(settings: Settings, pool: Pool) -> AsyncIterator[tuple[Carrier, list[Round]]]:
    """Who carries callbacks to their receivers, and what else there is to do for that."""
    direct = Direct(settings.callback_policy)
    if settings.callback_sender == "builtin":
        yield direct, []
        return
    from scheduler.svix_sender import SvixCarrier, svix_client  # noqa: PLC0415, its client takes 10 MB

    assert settings.svix_url is not None and settings.svix_token is not None  # the settings see to that
    carrier = SvixCarrier(svix_client(settings.svix_url, settings.svix_token.get_secret_value()), direct, pool)
    try:
        yield carrier, [Round("sync with Svix", SLOW_S, carrier.sync_once)]
    finally:
        await carrier.close()


def rounds_of(
    settings: Settings,
    wakeups: Wakeups,
    sender: Sender,
    records: Records,
    *,
    pool: Pool,
    hot_pool: Pool,
    store: artifacts.Store,
) -> list[Round]:
    """Everything that the scheduler does, with its intervals."""
    sight = Sight(settings.lease_s)
    sizing = Sizing(settings.slot_memory, settings.max_slots)
    egress = EgressPolicy(allow=settings.callback_allow)

    async def promote() -> bool:
        reached: set[GateId] = set()
        async with hot_pool.acquire() as conn:
            moved = await queue.promote(conn, limit=BATCH, reached=reached)
        if moved:
            wakeups.hint(Topic.READY)
        await advance(hot_pool, wakeups, reached)
        return moved == BATCH

    async def reap() -> bool:
        freed: set[GateId] = set()
        reaped = await reap_once(pool, sight, limit=BATCH, max_losses=settings.max_losses, freed=freed)
        await advance(hot_pool, wakeups, freed)
        if reaped.requeued:
            wakeups.hint(Topic.READY)
        if reaped.ended:
            wakeups.hint(Topic.OUTCOME)
            wakeups.hint(Topic.DELIVERY)
        if reaped.requeued or reaped.ended:
            records.count(Tally.LEASES_LOST, reaped.requeued + reaped.ended)
            log.warning("leases ran out", requeued=reaped.requeued, ended=reaped.ended)
        return reaped.requeued + reaped.ended == BATCH

    looked_to = batches.FIRST

    async def complete_batches() -> bool:
        nonlocal looked_to
        async with hot_pool.acquire() as conn:
            done, after = await batches.complete_once(conn, looked_to, limit=BATCHES)
        looked_to = after or batches.FIRST
        if done:
            wakeups.hint(Topic.DELIVERY)
        return after is not None

    async def chain() -> bool:
        reached: set[GateId] = set()
        chained = await chain_once(pool, store, sizing, egress, limit=CHAINS, reached=reached)
        await advance(hot_pool, wakeups, reached)
        if chained.submitted:
            wakeups.hint(Topic.READY)
        return chained.submitted + chained.failed == CHAINS

    async def cancel_after_delete() -> bool:
        ended = await cancelling.cancel_after_delete(pool, limit=BATCH)
        if ended:
            wakeups.hint(Topic.OUTCOME)
            wakeups.hint(Topic.DELIVERY)
        return ended == BATCH

    return [
        Round("promote", settings.poll_s, promote),
        # Well within what its ``Sight`` takes for a gap, however short leases are.
        Round("reap", min(settings.poll_s, settings.lease_s / 8), reap),
        *queue_rounds(settings, wakeups, pool=pool, hot_pool=hot_pool, store=store),
        Round("deliver", settings.poll_s, sender.deliver_once, ticket=lambda: wakeups.ticket(Topic.DELIVERY)),
        Round("complete batches", settings.poll_s, complete_batches),
        Round("chain", settings.poll_s, chain, ticket=lambda: wakeups.ticket(Topic.OUTCOME)),
        Round("cancel jobs of deleted functions", LATE_S, cancel_after_delete),
        Round("tell of rounds", TELL_S, partial(records.tell_once, pool)),
        *tidy_rounds(settings, pool=pool, store=store),
    ]


def tidy_rounds(settings: Settings, *, pool: Pool, store: artifacts.Store) -> list[Round]:
    """Those that nobody waits for."""
    # An upload that its URL still lets through must find its row.
    upload = timedelta(seconds=settings.upload_s) + timedelta(hours=1)

    async def sweep() -> bool:
        return await artifacts.sweep_once(pool, store, limit=BATCH, age=upload) == BATCH

    async def forget_keys() -> bool:
        async with pool.acquire() as conn:
            return await idempotency.forget(conn, limit=BATCH) == BATCH

    async def forget_versions() -> bool:
        async with pool.acquire() as conn:
            return await versions.forget_one_offs(conn, limit=BATCH) == BATCH

    async def forget_nodes() -> bool:
        async with pool.acquire() as conn, conn.transaction():
            await registry.forget_unjoined(conn)
            await registry.forget_drained(conn)
            return await servers.forget_failed(conn, limit=BATCH) == BATCH

    return [
        Round("sweep artifacts", SLOW_S, sweep),
        Round("forget idempotency keys", SLOW_S, forget_keys),
        Round("forget versions of one-off jobs", SLOW_S, forget_versions),
        Round("forget nodes that never were", SLOW_S, forget_nodes),
    ]


@asynccontextmanager
async def _pool(url: str, *, hot_path: bool) -> AsyncIterator[Pool]:
    pool = await open_pool(url, hot_path=hot_path, command_timeout_s=STATEMENT_S)
    try:
        yield pool
    finally:
        # A statement that does not end must not keep the process.
        try:
            async with asyncio.timeout(POOL_STOP_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()

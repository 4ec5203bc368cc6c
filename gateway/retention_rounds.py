"""The scheduler's rounds that let go of what has been kept long enough, and hold the store against the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from functions import endpoints, expiring, signing_keys
from functions.artifacts import Store
from functions.db import Pool
from functions.ids import ArtifactId
from gateway.settings import Settings
from scheduler import deliveries, receipts, retention
from scheduler.loop import Round
from scheduler.retention import Keeping

log = structlog.get_logger(__name__)

INTERVAL_S = 60
BATCH = 500
JOBS = 100
"""Finished jobs whose logs and files go in one transaction."""


def retention_rounds(settings: Settings, pool: Pool, store: Store) -> list[Round]:
    """Each does one batch and says whether there is more; positions that they remember are only where they go on."""
    keeping = Keeping(settings.retention_jobs, settings.retention_artifacts, settings.retention_logs)
    # Longer than an upload may take: its row and its object do not come in one moment.
    settled = timedelta(seconds=settings.upload_s) + timedelta(hours=1)
    uploads_from: tuple[datetime, ArtifactId] | None = None
    compared_to: str | None = None
    receipts_at = receipts.FIRST
    warned = False

    async def note() -> bool:
        async with pool.acquire() as conn:
            return await retention.note_once(conn, keeping, limit=BATCH) == BATCH

    async def expire() -> bool:
        expired = await retention.expire_once(pool, limit=JOBS)
        if expired.looked:
            log.info("expired", jobs=expired.jobs, artifacts=expired.artifacts, log_chunks=expired.logs)
        return expired.looked == JOBS

    async def expire_uploads() -> bool:
        nonlocal uploads_from
        async with pool.acquire() as conn:
            gone, uploads_from = await expiring.expire_uploads(conn, uploads_from, age=keeping.artifacts, limit=BATCH)
            await expiring.forget_uploads(conn, age=keeping.jobs, limit=BATCH)
        return gone == BATCH  # past those that are needed it goes slowly

    async def remove() -> bool:
        return await expiring.remove_once(pool, store, limit=BATCH) == BATCH

    async def compare() -> bool:
        nonlocal compared_to, warned
        compared = await expiring.compare_once(pool, store, compared_to, age=settled)
        compared_to = compared.after
        if compared.foreign and not warned:
            warned = True
            log.warning("the bucket has files of another database: orphans are left alone", bucket=settings.s3_bucket)
        if compared.orphans or compared.missing:
            log.warning("store and database differed", orphans=compared.orphans, missing=compared.missing)
        return False

    async def forget_receipts() -> bool:
        nonlocal receipts_at
        older_than = datetime.now(UTC) - settings.retention_webhooks
        async with pool.acquire() as conn:
            _, receipts_at = await receipts.forget_once(conn, receipts_at, older_than=older_than, limit=BATCH)
        return receipts_at != receipts.FIRST

    async def forget_callbacks() -> bool:
        async with pool.acquire() as conn:
            await signing_keys.forget_retired(conn, limit=BATCH)
            await endpoints.forget_retired(conn, limit=BATCH)
            return await deliveries.forget(conn, age=keeping.jobs, limit=BATCH) == BATCH

    return [
        Round("note expiries", INTERVAL_S, note),
        Round("expire", INTERVAL_S, expire),
        Round("expire uploads", INTERVAL_S, expire_uploads),
        Round("remove expired files", INTERVAL_S, remove),
        Round("compare the store", INTERVAL_S, compare),
        Round("forget receipts", INTERVAL_S, forget_receipts),
        Round("forget callbacks", INTERVAL_S, forget_callbacks),
    ]

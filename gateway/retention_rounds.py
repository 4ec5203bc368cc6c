"""The scheduler's rounds that let go of what has been kept long enough, and hold the store against the database."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from functions import expiring
from functions.artifacts import Store
from functions.db import Pool
from functions.ids import ArtifactId
from gateway.settings import Settings
from scheduler import retention
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

    return [
        Round("note expiries", INTERVAL_S, note),
        Round("expire", INTERVAL_S, expire),
        Round("expire uploads", INTERVAL_S, expire_uploads),
        Round("remove expired files", INTERVAL_S, remove),
        Round("compare the store", INTERVAL_S, compare),
    ]

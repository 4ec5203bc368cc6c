"""Batches of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from gateway.api.models import View


class BatchCounts(View):
    scheduled: int
    queued: int
    running: int
    succeeded: int
    failed: int
    timed_out: int
    cancelled: int
    expired: int


class BatchLinks(View):
    self: str
    jobs: str
    cancel: str


class BatchView(View):
    """A batch. ``counts`` adds up to ``total``; a list leaves it out (null) while the batch runs."""

    id: str
    function: str | None
    version: int | None
    status: Literal["running", "completed"]
    total: int
    counts: BatchCounts | None
    callback_url: str | None
    created_at: datetime
    completed_at: datetime | None
    links: BatchLinks


class BatchList(View):
    data: list[BatchView]
    next_cursor: str | None

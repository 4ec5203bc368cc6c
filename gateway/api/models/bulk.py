"""Calls that cancel or retry many jobs."""

from __future__ import annotations

from gateway.api.models import View


class Refusal(View):
    """A job that no new one can be made of, and why."""

    job: str
    code: str
    message: str


class BulkCancelled(View):
    """``matched`` is what the filters fit; ``remaining`` of it is not dealt with yet: call again."""

    dry_run: bool
    matched: int
    cancelled: int
    remaining: int


class BulkRetried(View):
    """``skipped`` had been retried before and are not counted as matched; ``errors`` are the first of the refused."""

    dry_run: bool
    matched: int
    retried: int
    skipped: int
    refused: int
    remaining: int
    errors: list[Refusal]

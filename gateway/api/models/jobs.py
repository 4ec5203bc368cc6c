"""The job object, its history and lists of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gateway.api.models import View

Status = Literal["scheduled", "queued", "running", "succeeded", "failed", "timed_out", "cancelled", "expired"]


class JobError(View):
    code: str
    message: str
    attempt: int


class OutputView(View):
    name: str
    path: str
    artifact: str
    uri: str
    size: int
    sha256: str
    content_type: str
    url: str | None
    url_expires_at: datetime | None
    link: str


class Cost(View):
    """EUR net. ``estimated`` until the job has ended and the hours that its nodes were paid for are settled."""

    currency: str
    amount: str
    estimated: bool


class JobLinks(View):
    self: str
    logs: str
    events: str
    cancel: str
    retry: str


class JobView(View):
    """The job object. Times are RFC 3339 UTC; ``*_ms`` are milliseconds. ``max_cost`` is the ``RGrid-Max-Cost`` that it
    was made with, EUR net."""

    id: str
    function: str | None
    version: int
    status: Status
    trigger: dict[str, Any]
    params: dict[str, Any]
    batch: str | None
    retried_from: str | None
    attempt: int
    max_attempts: int
    wait_reason: str | None
    eta: datetime | None
    progress: float | None
    exit_code: int | None
    result: Any
    error: JobError | None
    outputs: list[OutputView]
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    queue_ms: int | None
    boot_ms: int
    pull_ms: int
    run_ms: int
    cost: Cost
    max_cost: str | None
    node: str | None
    callback_url: str | None
    links: JobLinks


class JobList(View):
    data: list[JobView]
    next_cursor: str | None


class EventView(BaseModel):
    """One thing that happened; further members depend on ``type``."""

    model_config = ConfigDict(extra="allow")

    at: datetime
    type: str


class EventList(View):
    data: list[EventView]

"""What answers look like: the models that the OpenAPI document is made from. Tests hold the real answers to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Status = Literal["scheduled", "queued", "running", "succeeded", "failed", "timed_out", "cancelled", "expired"]


class View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NothingMore(View):
    """The body of a call that takes no options. It may be left out."""


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
    url: str
    url_expires_at: datetime
    link: str


class Cost(View):
    currency: str
    amount: str


class JobLinks(View):
    self: str
    logs: str
    events: str
    cancel: str
    retry: str


class JobView(View):
    """The job object. Times are RFC 3339 UTC; ``*_ms`` are milliseconds."""

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


class DryRun(View):
    valid: Literal[True]
    function: str
    version: int
    params: dict[str, Any]


class VersionView(View):
    version: int
    image: str
    image_digest: str | None
    created_at: datetime


class VersionList(View):
    data: list[VersionView]
    next_cursor: str | None


class FunctionView(View):
    name: str
    description: str
    labels: dict[str, str]
    version: int
    manifest: dict[str, Any]
    image_digest: str | None
    created_at: datetime
    updated_at: datetime


class AppliedView(FunctionView):
    changed: bool


class FunctionList(View):
    data: list[FunctionView]
    next_cursor: str | None


class ArtifactView(View):
    id: str
    uri: str
    name: str
    size: int
    sha256: str
    content_type: str
    created_at: datetime
    url: str
    url_expires_at: datetime
    link: str


class NodeView(View):
    id: str
    name: str
    provider: str
    state: Literal["joining", "ready", "draining", "gone", "silent"]
    slots: int
    running: int
    version: str | None
    facts: dict[str, Any]
    created_at: datetime
    joined_at: datetime | None
    last_seen_at: datetime | None


class NodeList(View):
    data: list[NodeView]
    next_cursor: str | None


class JoinTokenView(View):
    """``join_token`` is shown this once and works once."""

    id: str
    join_token: str
    expires_at: datetime


class CallbackSecret(View):
    """``secret`` is a Standard Webhooks key (``whsec_…``) for any of their libraries."""

    secret: str


class DeliveryAttempt(View):
    """``status`` is the receiver's answer; without one, ``error`` says why. ``response`` is how its body begins."""

    attempt: int
    at: datetime
    status: int | None
    duration_ms: int
    error: str | None
    response: str | None


class DeliveryView(View):
    """``id`` is the ``webhook-id`` of every attempt; ``next_at`` is when a pending one is tried next."""

    id: str
    job: str
    type: str
    url: str
    state: Literal["pending", "delivered", "exhausted"]
    created_at: datetime
    next_at: datetime | None
    attempts: list[DeliveryAttempt]


class DeliveryList(View):
    data: list[DeliveryView]
    next_cursor: str | None


class Redelivered(View):
    id: str
    state: Literal["pending"]
